// A spoken question in two turns, asked with OpenAI's client for Node: whole and streamed.
// node chat.mjs http://127.0.0.1:8080/v1 question.wav
import { readFile } from "node:fs/promises";
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, file] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: process.env.OPENAI_API_KEY ?? "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const question = (await readFile(file)).toString("base64");
const user = { role: "user", content: [{ type: "input_audio", input_audio: { data: question, format: "wav" } }] };
// The first of the mesh's voices; max_frame_count is this mesh's own: 12 frames of 80 ms are enough to see.
const voice = (await (await fetch(`${baseURL}/audio/voices`)).json()).data[0].id;
const asked = { model, modalities: ["text", "audio"], audio: { voice, format: "pcm16" }, seed: 1, max_frame_count: 12 };

const whole = await client.chat.completions.create({ ...asked, messages: [user] });
const { message } = whole.choices[0];
assert.ok(Buffer.from(message.audio.data, "base64").length > 0);
assert.ok(whole.usage.prompt_tokens_details.audio_tokens > 0);

const messages = [user, { role: "assistant", audio: { id: message.audio.id } }, user];
const second = await client.chat.completions.create({ ...asked, messages });
const stream = await client.chat.completions.create({
  ...asked,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
const heard = [];
let transcript = "";
let id, usage;
for await (const chunk of stream) {
  usage = chunk.usage ?? usage;
  const audio = chunk.choices[0]?.delta.audio;
  if (audio?.data) heard.push(Buffer.from(audio.data, "base64"));
  transcript += audio?.transcript ?? "";
  id = audio?.id ?? id;
}
assert.deepEqual(Buffer.concat(heard), Buffer.from(second.choices[0].message.audio.data, "base64"));
assert.equal(transcript, second.choices[0].message.audio.transcript);
assert.equal(usage.completion_tokens, second.usage.completion_tokens);
assert.ok(id.startsWith("audio_"));

// A client that stops listening: the reply ends, and the next one is given.
const stopped = await client.chat.completions.create({ ...asked, messages: [user], stream: true });
for await (const _ of stopped) break;
await assert.rejects(client.chat.completions.create({ ...asked, messages: [user], audio: { voice: "nobody" } }), {
  status: 400,
  param: "audio.voice",
});
console.log(JSON.stringify({ model, voice, transcript, samples: Buffer.concat(heard).length / 2, usage }));
