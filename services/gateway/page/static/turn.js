// One exchange: what the user said or typed, and the reply to it.

import { SAMPLE_RATE_HZ } from "./pcm.js";

/** With so much in hand the mesh waits for its listener, and its pace says nothing about its speed any more. */
const PACED_SECONDS = 3;

export class Turn {
  /** kind: "spoken" or "typed" */
  constructor(index, kind, text = "") {
    this.index = index;
    this.kind = kind;
    this.text = text;
    // "saying" → "waiting" → "replying" → "done" | "interrupted" | "failed"
    this.phase = kind === "spoken" ? "saying" : "waiting";
    this.failure = "";
    this.levels = [];
    this.speechSeconds = 0;

    this.responseId = null;
    this.itemId = null;
    this.status = null; // of the response, once it is done
    this.timings = null; // the mesh's own: as of its first sound, and again once it is done
    this.recoveryCount = 0; // how often a stage was lost and another replica went on
    this.pieces = []; // {sample, text}: text, and where in the sound it begins
    this.receivedSamples = 0;
    this.playedSamples = 0;
    this.gapSamples = 0;
    this.isCut = false;
    this.isDrained = false;

    // On performance.now()'s clock.
    this.endedAt = null; // of the user's part
    this.firstPlayedAt = null;
    this.factor = null; // RTF: the time it took to make ÷ the time it takes to hear
    this.isPaced = false;
  }

  get isOver() {
    return this.phase === "done" || this.phase === "interrupted" || this.phase === "failed";
  }

  get isBeingMade() {
    return this.responseId !== null && this.status === null;
  }

  /** Milliseconds from the end of the user's part to the first sound that was heard; null as long as there is none. */
  get firstSoundMs() {
    return this.firstPlayedAt === null || this.endedAt === null ? null : this.firstPlayedAt - this.endedAt;
  }

  get receivedSeconds() {
    return this.receivedSamples / SAMPLE_RATE_HZ;
  }

  get playedMs() {
    return Math.floor((this.playedSamples * 1000) / SAMPLE_RATE_HZ);
  }

  /** The text whose sound has begun; all of it after a reply that was heard to its end. */
  get spokenText() {
    const isWhole = this.phase === "done";
    return this.pieces
      .filter(({ sample }) => isWhole || sample < this.playedSamples)
      .map(({ text }) => text)
      .join("");
  }

  received(count, now) {
    this.receivedSamples += count;
    if (this.endedAt === null || this.isPaced) return;
    this.factor = (now - this.endedAt) / 1000 / this.receivedSeconds;
    this.isPaced = (this.receivedSamples - this.playedSamples) / SAMPLE_RATE_HZ > PACED_SECONDS;
  }

  played(count, gap, at) {
    this.firstPlayedAt ??= at;
    this.playedSamples += count;
    this.gapSamples += gap;
  }
}
