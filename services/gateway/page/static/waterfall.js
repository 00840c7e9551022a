// Where a reply's time went, from the end of the user's part to the first sound that was heard.

import { element } from "./element.js";

// Each stage with its parts of the mesh's timings, and which of those are work; the others are queues and hops.
const STAGES = [
  ["encode", "The sound that was left when the turn ended, through the audio encoder", {
    reasoner_lost: false, reasoner_queue: false, encode: true,
  }],
  ["prefill", "The rest of the prompt, through the reasoner", { prefill: true }],
  ["first step", "The reasoner's first token", { first_step: true, reasoner_hop: false }],
  ["first frame", "The voice, and the first 80 ms of speech as codes", {
    speech_lost: false, speech_queue: false, voice_prefill: true, first_frame: true, speech_hop: false,
  }],
  ["codec", "The codes as sound", { codec_lost: false, codec_queue: false, decode: true, codec_hop: false }],
];

/** {label, title, spans: [{start, length, isWork}]} of each stage, in milliseconds, in order; heard after `firstMs`. */
function stages(turn, firstMs) {
  const lengths = Object.fromEntries((turn.timings?.parts ?? []).map(({ name, seconds }) => [name, seconds * 1000]));
  let at = 0;
  const rows = STAGES.map(([label, title, parts]) => {
    const spans = Object.entries(parts).map(([name, isWork]) => {
      const span = { start: at, length: lengths[name] ?? 0, isWork };
      at += span.length;
      return span;
    });
    return { label, title, spans };
  });
  const spans = [{ start: at, length: lengths.send ?? 0, isWork: true }];
  at += lengths.send ?? 0;
  if (firstMs > at) spans.push({ start: at, length: firstMs - at, isWork: false });
  rows.push({ label: "first sample", title: "Out of the mesh, and over the network to your ear", spans });
  return rows;
}

/** A round step that divides a span into two to five. */
function tick(span) {
  const power = 10 ** Math.floor(Math.log10(span / 2));
  return [5, 2, 1].map((factor) => factor * power).find((step) => span / step >= 2);
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const TENTHS = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** "143 ms", "2.4 ms", "1.3 s" */
export function duration(ms) {
  if (ms >= 9999.5) return `${WHOLE.format(ms / 1000)} s`;
  if (ms >= 999.5) return `${TENTHS.format(ms / 1000)} s`;
  return `${(ms < 9.95 ? TENTHS : WHOLE).format(ms)} ms`;
}

/** The list of a turn's stages with their bars, whose first sound is heard, or still awaited, after `firstMs`. */
export function waterfall(turn, firstMs) {
  const rows = stages(turn, firstMs);
  const end = Math.max(1, ...rows.flatMap(({ spans }) => spans.map(({ start, length }) => start + length)));
  const list = element("ol", { class: "waterfall" });
  const said = turn.kind === "typed" ? "typed" : duration(turn.speechSeconds * 1000);
  const speech = element("li", { title: "What you said; the time of the others counts from its end" }, [
    element("span", { class: "stage" }, ["speech"]),
    element("span", { class: "lane" }, turn.kind === "typed" ? [] : [element("i", { class: "speech" })]),
    element("span", { class: "took" }, [said]),
  ]);
  list.append(speech);
  for (const { label, title, spans } of rows) {
    const bars = spans.filter(({ length }) => length > 0).map((span) => bar(span, end));
    const took = spans.reduce((sum, { length }) => sum + length, 0);
    list.append(
      element("li", { title }, [
        element("span", { class: "stage" }, [label]),
        element("span", { class: "lane" }, bars),
        element("span", { class: "took" }, [took > 0 ? duration(took) : "–"]),
      ]),
    );
  }
  list.append(axis(end));
  return list;
}

function bar({ start, length, isWork }, end) {
  const mark = element("i", { class: isWork ? "work" : "hop" });
  mark.style.setProperty("--start", start / end);
  mark.style.setProperty("--length", length / end);
  return mark;
}

function axis(end) {
  const step = tick(end);
  const marks = [];
  for (let at = 0; at <= end * 0.94; at += step) {
    const mark = element("b", {}, [at === 0 ? "0" : duration(at)]);
    mark.style.setProperty("--start", at / end);
    marks.push(mark);
  }
  return element("li", { class: "axis", "aria-hidden": "true" }, [
    element("span", { class: "stage" }),
    element("span", { class: "lane" }, marks),
    element("span", { class: "took" }),
  ]);
}
