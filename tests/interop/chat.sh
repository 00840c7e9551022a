#!/usr/bin/env bash
# curl: a spoken question, whose answer is cut by hanging up while it streams, and a second turn about the same.
# chat.sh http://127.0.0.1:8080/v1 question.wav
set -euo pipefail
url=$1 question=$(base64 -w0 "$2") folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

sound='{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"'$question'","format":"wav"}}]}'
asked='"model":"chroma-4b","modalities":["text","audio"],"seed":1,"max_frame_count":100'

printf '{%s,"audio":{"format":"pcm16"},"stream":true,"messages":[%s]}' "$asked" "$sound" >"$folder/first.json"
# head has enough after a few events; curl then hangs up.
curl -sSN "$url/chat/completions" -H 'Content-Type: application/json' -d "@$folder/first.json" 2>/dev/null |
  head -n 8 >"$folder/first.txt" || true
grep -q '"audio"' "$folder/first.txt"

printf '{%s,"audio":{"format":"wav"},"messages":[%s,{"role":"assistant","content":"One moment."},%s]}' \
  "$asked" "$sound" "$sound" >"$folder/second.json"
curl -sSf "$url/chat/completions" -H 'Content-Type: application/json' -d "@$folder/second.json" >"$folder/second.txt"
grep -q '"transcript"' "$folder/second.txt"
echo "two turns, the first answer cut after $(wc -c <"$folder/first.txt") bytes; the second has $(wc -c <"$folder/second.txt")"
