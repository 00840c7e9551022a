// What is said: packets of 20 ms at 24 kHz from the microphone.

import { SAMPLE_RATE_HZ } from "./pcm.js";

const LOWPASS_HZ = 10500;
// Two second-order sections that make a Butterworth filter of the fourth order.
const LOWPASS_Q = [0.5412, 1.3066];

/** Why there is no microphone, for people. */
export class NoMicrophone extends Error {}

export class Microphone {
  #stream = null;
  #context = null;
  #node = null;

  /** onpacket(Int16Array of 480 samples) */
  onpacket = () => {};
  /** onlost(): it was unplugged, or taken away. */
  onlost = () => {};

  get isOpen() {
    return this.#stream !== null;
  }

  /** Raises NoMicrophone. */
  async open() {
    if (this.isOpen) return;
    const stream = await listen();
    try {
      this.#context = await this.#follow(stream);
    } catch (error) {
      stop(stream);
      throw error;
    }
    this.#stream = stream;
    stream.getAudioTracks()[0].onended = () => {
      this.close();
      this.onlost();
    };
  }

  close() {
    if (!this.isOpen) return;
    this.#node.port.onmessage = null; // what is on its way is not for anybody's ears either
    stop(this.#stream);
    this.#context.close();
    this.#stream = this.#context = this.#node = null;
  }

  async #follow(stream) {
    let context = new AudioContext({ sampleRate: SAMPLE_RATE_HZ });
    let source;
    try {
      source = context.createMediaStreamSource(stream);
    } catch {
      // Firefox takes a microphone only at its own rate: the worklet picks its samples, after what would alias is gone.
      await context.close();
      context = new AudioContext();
      source = lowpass(context, context.createMediaStreamSource(stream));
    }
    await context.audioWorklet.addModule(new URL("capture-worklet.js", import.meta.url));
    this.#node = new AudioWorkletNode(context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    this.#node.port.onmessage = ({ data }) => this.onpacket(data);
    source.connect(this.#node);
    await context.resume();
    return context;
  }
}

function lowpass(context, source) {
  return LOWPASS_Q.reduce((before, q) => {
    const filter = new BiquadFilterNode(context, { type: "lowpass", frequency: LOWPASS_HZ, Q: 20 * Math.log10(q) });
    before.connect(filter);
    return filter;
  }, source);
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}

async function listen() {
  if (!navigator.mediaDevices) {
    throw new NoMicrophone("Browsers give a microphone only to pages over HTTPS, or from this computer itself.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
  } catch (error) {
    throw new NoMicrophone(
      {
        NotAllowedError: "This page may not use the microphone. Allow it in the browser's address bar, then try again.",
        NotFoundError: "There is no microphone. Plug one in, then try again – or type a turn.",
        NotReadableError: "The microphone is in use elsewhere, or does not work.",
      }[error.name] ?? `The microphone cannot be used: ${error.message}`,
    );
  }
}
