// What is heard: a queue of items (a reply's sound is one), played by a worklet that says what it has played.

import { SAMPLE_RATE_HZ } from "./pcm.js";

export class Speaker {
  #context = null;
  #node = null;
  #opening = null;
  #stops = [];

  /** onplayed({item, samples, gap, at}): `at` is when the first of them is heard, on performance.now()'s clock. */
  onplayed = () => {};
  /** ondrained(item): it was played to its end. */
  ondrained = () => {};

  /** Browsers give sound only to somebody who has clicked or typed: call it from there, as often as you like. */
  async open() {
    this.#opening ??= this.#open();
    await this.#opening;
    if (this.#context.state !== "running") await this.#context.resume();
  }

  async #open() {
    this.#context = new AudioContext({ sampleRate: SAMPLE_RATE_HZ, latencyHint: "interactive" });
    await this.#context.audioWorklet.addModule(new URL("playback-worklet.js", import.meta.url));
    this.#node = new AudioWorkletNode(this.#context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#node.port.onmessage = ({ data }) => this.#heard(data);
    this.#node.connect(this.#context.destination);
  }

  push(item, samples) {
    this.#node?.port.postMessage({ kind: "push", item, samples }, [samples.buffer]);
  }

  end(item) {
    this.#node?.port.postMessage({ kind: "end", item });
  }

  /** Silence, now. Resolves with [{item, played}]: of what was cut, how many samples had been played. */
  stop() {
    if (!this.#node) return Promise.resolve([]);
    return new Promise((resolve) => {
      this.#stops.push(resolve);
      this.#node.port.postMessage({ kind: "stop" });
    });
  }

  #heard(told) {
    if (told.kind === "played") {
      const { currentTime, outputLatency } = this.#context;
      const at = performance.now() + (told.time - currentTime + (outputLatency || 0)) * 1000;
      this.onplayed({ item: told.item, samples: told.samples, gap: told.gap, at });
    } else if (told.kind === "drained") {
      this.ondrained(told.item);
    } else {
      this.#stops.shift()(told.items);
    }
  }
}
