// To the speaker: what was pushed, in order, each sample once, and word of each that was played.
//
// In:  {kind: "push", item, samples} · {kind: "end", item} · {kind: "stop"}
// Out: {kind: "played", item, samples, gap, time}   gap: samples of silence that were put in, for nothing was there;
//                                                   time: of the first sample, in the context's seconds
//      {kind: "drained", item}                      it has ended and was played whole
//      {kind: "stopped", items: [{item, played}]}   nothing of these is played any more; samples played of each

const REPORT_SAMPLES = 480;
// After a gap it goes on when this much is there, or the sound would stutter.
const REFILL_SAMPLES = 2400;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.items = [];
    this.report = new Int16Array(REPORT_SAMPLES);
    this.reported = 0;
    this.reportTime = 0;
    this.gap = 0;
    this.isStarving = false;
    this.port.onmessage = ({ data }) => this[data.kind](data);
  }

  item(id) {
    let item = this.items.find((each) => each.id === id);
    if (!item) {
      item = { id, packets: [], offset: 0, queued: 0, played: 0, isEnded: false };
      this.items.push(item);
    }
    return item;
  }

  push({ item: id, samples }) {
    const item = this.item(id);
    item.packets.push(samples);
    item.queued += samples.length;
  }

  end({ item: id }) {
    this.item(id).isEnded = true;
  }

  stop() {
    this.tell();
    this.port.postMessage({
      kind: "stopped",
      items: this.items.map((item) => ({ item: item.id, played: item.played })),
    });
    this.items = [];
    this.gap = 0;
    this.isStarving = false;
  }

  process(_inputs, [[output]]) {
    let index = 0;
    while (index < output.length && this.items.length > 0) {
      const item = this.items[0];
      if (item.queued === 0 && item.isEnded) {
        this.tell();
        this.port.postMessage({ kind: "drained", item: item.id });
        this.items.shift();
        this.isStarving = false;
      } else if (item.queued === 0 || (this.isStarving && item.queued < REFILL_SAMPLES && !item.isEnded)) {
        if (item.played > 0) {
          if (!this.isStarving) this.tell();
          this.isStarving = true;
          this.gap += output.length - index;
        }
        break;
      } else {
        this.isStarving = false;
        this.play(item, output, index);
        index += 1;
      }
    }
    return true;
  }

  play(item, output, index) {
    const sample = item.packets[0][item.offset];
    output[index] = sample / 32768;
    item.offset += 1;
    item.queued -= 1;
    item.played += 1;
    if (item.offset === item.packets[0].length) {
      item.packets.shift();
      item.offset = 0;
    }
    if (this.reported === 0) this.reportTime = (currentFrame + index) / sampleRate;
    this.report[this.reported] = sample;
    this.reported += 1;
    // The first is told at once: somebody is waiting to see it.
    if (this.reported === REPORT_SAMPLES || item.played === 1) this.tell();
  }

  tell() {
    if (this.reported === 0) return;
    this.port.postMessage({
      kind: "played",
      item: this.items[0].id,
      samples: this.report.slice(0, this.reported),
      gap: this.gap,
      time: this.reportTime,
    });
    this.reported = 0;
    this.gap = 0;
  }
}

registerProcessor("playback", Playback);
