// The openai package for Node, as it comes: a spoken conversation of two turns, the second over the first's reply.
//
// Arguments: the base URL (…/v1), and a WAV of the user's turn, 16 bits at 24,000 Hz, with a header of 44 bytes.
import { readFileSync } from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';
import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';

const [baseURL, path] = process.argv.slice(2);
const PACKET_BYTES = 2 * 480;
const question = Buffer.concat([readFileSync(path).subarray(44), Buffer.alloc(2 * 24000)]);

const client = new OpenAI({ apiKey: process.env.OPENAI_API_KEY ?? 'none', baseURL });
const realtime = new OpenAIRealtimeWS({ model: 'chroma-4b' }, client);

let speaking = false;
async function speak() {
  speaking = true;
  for (let start = 0; start < question.length; start += PACKET_BYTES) {
    const audio = question.subarray(start, start + PACKET_BYTES).toString('base64');
    realtime.send({ type: 'input_audio_buffer.append', audio });
    await wait(20);
  }
  speaking = false;
}

const items = [];
const heard = {};
const reasons = [];

function fail(why) {
  console.error(why);
  process.exit(1);
}

realtime.on('error', (error) => {
  if (error.error?.code !== 'response_cancel_not_active') fail(error);
});
realtime.on('session.created', () => {
  realtime.send({
    type: 'session.update',
    session: { type: 'realtime', instructions: 'Be brief.', max_output_tokens: 24 },
  });
  speak();
});
realtime.on('response.output_item.added', (event) => items.push(event.item.id));
realtime.on('response.output_audio.delta', (event) => {
  heard[event.item_id] = (heard[event.item_id] ?? 0) + Buffer.from(event.delta, 'base64').length;
  if (event.item_id === items[0] && !speaking) speak();
  else if (event.item_id !== items[0] && heard[event.item_id] > 2 * 24000) {
    realtime.send({ type: 'response.cancel' }); // random weights find no end
  }
});
realtime.on('input_audio_buffer.speech_started', () => {
  if (items.length === 1 && !reasons.length) {
    realtime.send({ type: 'conversation.item.truncate', item_id: items[0], content_index: 0, audio_end_ms: 100 });
  }
});
realtime.on('response.done', ({ response }) => {
  reasons.push(response.status_details?.reason);
  if (reasons.length < 2) return;
  if (items.length !== 2) fail(`two replies were expected, got ${items.length}`);
  if (reasons[0] !== 'turn_detected') fail(`the first reply was not cut by speech: ${reasons[0]}`);
  console.log(`two turns, the first reply cut after ${heard[items[0]]} bytes of sound; the second has ${heard[items[1]]}`);
  realtime.close();
});
