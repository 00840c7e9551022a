// The conversation as it is seen: one article a turn, text on one side, time on the other.

import { element } from "./element.js";
import { duration, waterfall } from "./waterfall.js";

const SVG = "http://www.w3.org/2000/svg";
const BAR_COUNT = 48;

export class Ledger {
  #place;
  #entries = new Map();
  #counting = null;

  constructor(place) {
    this.#place = place;
  }

  show(turn) {
    if (turn.phase === "forgotten") {
      this.#entries.get(turn)?.article.remove();
      this.#entries.delete(turn);
      return;
    }
    let entry = this.#entries.get(turn);
    if (!entry) {
      for (const earlier of this.#entries.values()) earlier.fold();
      entry = new Entry(turn);
      this.#entries.set(turn, entry);
      const follows = isAtEnd();
      this.#place.append(entry.article);
      if (follows) toEnd();
    }
    const follows = isAtEnd();
    entry.show();
    if (follows) toEnd();
    this.#count();
  }

  /** A line across: what comes now knows nothing of what was before. */
  divide(words) {
    if (this.#place.lastElementChild?.matches("article")) {
      this.#place.append(element("p", { class: "divide" }, [words]));
    }
  }

  /** As long as a first sound is awaited, its time is shown as it grows. */
  #count() {
    if (this.#counting !== null) return;
    const step = () => {
      this.#counting = null;
      const waiting = [...this.#entries.values()].filter((entry) => entry.isWaiting);
      if (waiting.length === 0) return;
      for (const entry of waiting) entry.showTime();
      this.#counting = requestAnimationFrame(step);
    };
    this.#counting = requestAnimationFrame(step);
  }
}

function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = document.scrollingElement;
  return scrollHeight - scrollTop - clientHeight < 120;
}

function toEnd() {
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
}

const NOTES = { interrupted: "stopped here", failed: "failed" };

class Entry {
  #turn;
  #user = element("div", { class: "user" });
  #reply = element("p", { class: "reply" });
  #note = element("p", { class: "note" });
  #first = element("span", { class: "first" });
  #facts = element("span", { class: "facts" });
  #details = element("details", { class: "time" });
  #stages = element("div", { class: "stages" });
  #drawn = null;
  #told = null;
  #said = null;

  constructor(turn) {
    this.#turn = turn;
    this.#details.open = true;
    this.#details.append(element("summary", {}, [this.#first, this.#facts]), this.#stages);
    this.article = element("article", { "aria-label": `Turn ${turn.index + 1}` }, [
      element("div", { class: "words" }, [this.#user, this.#reply, this.#note]),
      this.#details,
    ]);
  }

  get isWaiting() {
    return !this.#turn.isOver && this.#turn.endedAt !== null && this.#turn.firstPlayedAt === null;
  }

  fold() {
    this.#details.open = false;
  }

  show() {
    const turn = this.#turn;
    this.article.dataset.phase = turn.phase;
    this.#showUser();
    const text = turn.spokenText;
    if (this.#reply.textContent !== text) this.#reply.textContent = text;
    this.#note.textContent = turn.failure || (NOTES[turn.phase] ?? "");
    this.#details.hidden = turn.endedAt === null;
    this.showTime();
  }

  showTime() {
    const turn = this.#turn;
    const firstMs = this.isWaiting ? performance.now() - turn.endedAt : turn.firstSoundMs;
    this.#first.textContent = firstMs === null ? "No sound" : duration(firstMs);
    this.#first.classList.toggle("live", this.isWaiting);
    this.#showFacts(firstMs);
    this.#showStages(firstMs);
  }

  #showFacts(firstMs) {
    const turn = this.#turn;
    const facts = firstMs === null ? [] : ["to first sound"];
    if (turn.timings?.first_audio_seconds) facts.push(`mesh ${duration(turn.timings.first_audio_seconds * 1000)}`);
    if (turn.factor !== null) facts.push(`RTF ${turn.factor.toFixed(2)}`);
    if (turn.recoveryCount > 0) facts.push("recovered");
    if (turn.gapSamples > 0) facts.push(`gaps ${duration(turn.gapSamples / 24)}`);
    const key = facts.join();
    if (key === this.#told) return;
    this.#told = key;
    this.#facts.replaceChildren(...facts.map((fact) => element("span", { title: FACTS[fact.split(" ")[0]] }, [fact])));
  }

  #showUser() {
    const turn = this.#turn;
    if (turn.kind === "typed") {
      this.#user.textContent = turn.text;
      return;
    }
    const words = turn.phase === "saying" ? "listening" : `${turn.speechSeconds.toFixed(1)} s of speech`;
    const key = `${turn.levels.length} ${words}`;
    if (key === this.#said) return;
    this.#said = key;
    this.#user.replaceChildren(waveform(turn.levels), element("span", {}, [words]));
  }

  #showStages(firstMs) {
    const { timings, status } = this.#turn;
    const key = `${timings !== null} ${status} ${firstMs}`;
    if (key === this.#drawn) return;
    this.#drawn = key;
    this.#stages.replaceChildren();
    if (firstMs === null && !timings?.parts?.length) return;
    this.#stages.append(
      waterfall(this.#turn, firstMs ?? 0),
      element("p", { class: "legend" }, legend(this.#turn)),
    );
  }
}

function legend({ timings, status }) {
  if (timings === null) return status === null ? ["The stages follow with the first sound."] : [];
  return [element("span", { class: "work" }, ["work"]), element("span", { class: "hop" }, ["queues and hops"])];
}

const FACTS = {
  to: "End of your turn to the first sound that you hear",
  mesh: "The same as the mesh saw it: end of your turn to its first sound on the way",
  RTF: "Time it took to make ÷ time it takes to hear; counted until the mesh is 3 s ahead of you, where it begins to wait",
  recovered: "A part of the mesh was lost while this was made, and another one went on",
  gaps: "Silence where sound should have been: it came too late",
};

/** Levels as bars, at most BAR_COUNT of them. */
function waveform(levels) {
  const picture = document.createElementNS(SVG, "svg");
  const group = Math.max(1, Math.ceil(levels.length / BAR_COUNT));
  const bars = [];
  for (let start = 0; start < levels.length; start += group) bars.push(Math.max(...levels.slice(start, start + group)));
  const width = Math.max(bars.length, 1) * 4;
  picture.setAttribute("viewBox", `0 0 ${width} 24`);
  picture.setAttribute("width", width);
  picture.setAttribute("height", 24);
  picture.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", bars.map((level, index) => `M${index * 4 + 1} ${12 - 1 - level * 10}v${2 + level * 20}`).join(""));
  picture.append(path);
  return picture;
}
