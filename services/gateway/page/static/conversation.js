// The protocol on one side, turns on the other: no word of the page's looks in here.

import { decode, encode, loudness } from "./pcm.js";
import { Turn } from "./turn.js";

const SHORTEST_TURN_SECONDS = 0.2;
// Speech is noticed a little after it began; so much of what came before belongs to it.
const KEPT_LEVELS = 15;

export class Conversation {
  #connection;
  #speaker;
  #turns = [];
  #awaiting = [];
  #postponed = [];
  #byResponse = new Map();
  #byItem = new Map();
  #byEvent = new Map();
  #eventCount = 0;
  #saying = null;
  #recent = [];
  #saidPackets = 0;

  /** onturn(turn): it is new, or something about it is. */
  onturn = () => {};
  /** onerror(message): of something that belongs to no turn. */
  onerror = () => {};

  constructor(connection, speaker) {
    this.#connection = connection;
    this.#speaker = speaker;
    speaker.onplayed = (told) => this.#played(told);
    speaker.ondrained = (item) => this.#drained(item);
  }

  /** The turn whose reply is being made or heard. */
  get replying() {
    return this.#turns.findLast((turn) => turn.responseId !== null && !turn.isOver) ?? null;
  }

  /** Whether there is anything that `interrupt` would stop. */
  get isBusy() {
    return this.replying !== null || this.#awaiting.length > 0;
  }

  configure({ isHandsFree, voice }) {
    this.#send({
      type: "session.update",
      session: {
        type: "realtime",
        output_modalities: ["audio"],
        audio: {
          input: {
            format: { type: "audio/pcm", rate: 24000 },
            turn_detection: isHandsFree
              ? { type: "server_vad", create_response: true, interrupt_response: true }
              : null,
          },
          output: { format: { type: "audio/pcm", rate: 24000 }, ...(voice ? { voice } : {}) },
        },
      },
    });
  }

  /** A packet of the microphone. */
  hear(samples) {
    const level = loudness(samples);
    if (this.#saying) {
      this.#saying.levels.push(level);
      this.onturn(this.#saying);
    }
    this.#recent = [...this.#recent.slice(1 - KEPT_LEVELS), level];
    this.#saidPackets += 1;
    this.#send({ type: "input_audio_buffer.append", audio: encode(samples) });
  }

  /** The key to talk is pressed: whatever is being said stops. */
  async beginTurn() {
    const stopped = this.interrupt();
    this.#saidPackets = 0;
    this.#saying = this.#add(new Turn(this.#turns.length, "spoken"));
    await stopped;
  }

  /** The key is released. False if that was too short to be anything. */
  endTurn() {
    const turn = this.#saying;
    if (!turn) return true;
    this.#saying = null;
    turn.speechSeconds = this.#saidPackets * 0.02;
    if (turn.speechSeconds < SHORTEST_TURN_SECONDS) {
      this.#send({ type: "input_audio_buffer.clear" });
      this.#forget(turn);
      return false;
    }
    this.#send({ type: "input_audio_buffer.commit" }, turn);
    this.#ask(turn);
    return true;
  }

  /** Something typed. */
  async type(text) {
    await this.interrupt();
    const turn = this.#add(new Turn(this.#turns.length, "typed", text));
    const content = [{ type: "input_text", text }];
    this.#send({ type: "conversation.item.create", item: { type: "message", role: "user", content } }, turn);
    this.#ask(turn);
  }

  /** Stops the reply that is being made or heard. */
  async interrupt() {
    for (const turn of this.#awaiting) turn.isCut = true; // its response does not exist yet: cancelled when it does
    const turn = this.replying;
    if (!turn) return;
    if (turn.isBeingMade) this.#cancel(turn);
    await this.#silence();
  }

  /** The session is gone, and all that was under way in it. */
  async lose() {
    const lost = this.#turns.filter((turn) => !turn.isOver);
    const byItem = this.#byItem;
    this.#saying = null;
    this.#awaiting = [];
    this.#postponed = [];
    this.#byResponse = new Map();
    this.#byItem = new Map();
    this.#byEvent = new Map();
    for (const turn of this.#turns) turn.status ??= "lost";
    for (const { item, played } of await this.#speaker.stop()) byItem.get(item).playedSamples = played;
    for (const turn of lost) this.#finish(turn, "failed", "The connection was lost.");
  }

  receive(event) {
    const turn = this.#byResponse.get(event.response_id);
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.#speechStarted(event);
        break;
      case "input_audio_buffer.speech_stopped":
        this.#speechStopped(event);
        break;
      case "response.created":
        this.#created(event.response);
        break;
      case "response.output_item.added":
        if (turn) {
          turn.itemId = event.item.id;
          this.#byItem.set(event.item.id, turn);
        }
        break;
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        if (turn) {
          // Text comes before its sound: without a word of where that begins, it is what comes next.
          turn.pieces.push({ sample: event.chroma?.audio_sample ?? turn.receivedSamples, text: event.delta });
        }
        break;
      case "response.output_audio.delta":
        if (turn) turn.timings ??= event.chroma?.timings ?? null;
        if (turn && !turn.isCut) {
          const samples = decode(event.delta);
          turn.received(samples.length, performance.now());
          this.#speaker.push(event.item_id, samples);
        }
        break;
      case "response.done":
        this.#done(event.response);
        break;
      case "error":
        this.#failed(event.error);
        break;
      default:
    }
  }

  #speechStarted({ audio_start_ms: startMs }) {
    const turn = new Turn(this.#turns.length, "spoken");
    turn.startMs = startMs;
    turn.levels = [...this.#recent];
    this.#saying = this.#add(turn);
    this.#silence(); // the mesh stops the reply by itself
  }

  #speechStopped({ audio_end_ms: endMs }) {
    const turn = this.#saying;
    if (!turn) return;
    this.#saying = null;
    turn.speechSeconds = (endMs - turn.startMs) / 1000;
    this.#wait(turn);
  }

  #created({ id }) {
    const turn = this.#awaiting.shift();
    if (!turn) return;
    turn.responseId = id;
    turn.phase = "replying";
    this.#byResponse.set(id, turn);
    if (turn.isCut) {
      this.#cancel(turn);
      turn.phase = "interrupted";
    }
    this.onturn(turn);
  }

  #done({ id, status, status_details: details, chroma }) {
    const turn = this.#byResponse.get(id);
    if (!turn) return;
    turn.status = status;
    this.#askNext();
    turn.timings = chroma?.timings ?? turn.timings;
    turn.recoveryCount = chroma?.recovery_count ?? 0;
    if (status === "failed") {
      this.#finish(turn, "failed", details?.error?.message || "The reply failed.");
    } else if (turn.isOver || turn.isCut) {
      this.onturn(turn);
    } else if (turn.receivedSamples === 0) {
      this.#finish(turn, status === "cancelled" ? "interrupted" : "done");
    } else {
      this.#speaker.end(turn.itemId);
      if (turn.isDrained) this.#finish(turn, "done");
      else this.onturn(turn);
    }
  }

  #failed({ type, message, event_id: eventId }) {
    const turn = this.#byEvent.get(eventId);
    if (turn && !turn.isOver && turn.responseId === null) {
      this.#awaiting = this.#awaiting.filter((each) => each !== turn);
      this.#finish(turn, "failed", message);
      this.#askNext();
    } else if (!turn) {
      this.onerror(type === "rate_limit_error" ? `The mesh is full: ${message}.` : message);
    }
  }

  #played({ item, samples, gap, at }) {
    const turn = this.#byItem.get(item);
    if (!turn) return;
    turn.played(samples.length, gap, at);
    this.onturn(turn, loudness(samples));
  }

  #drained(item) {
    const turn = this.#byItem.get(item);
    if (!turn) return;
    turn.isDrained = true;
    if (turn.status !== null) this.#finish(turn, "done");
  }

  /** Nothing is heard any more; the mesh learns how much of each reply was. */
  async #silence() {
    const turn = this.replying;
    if (turn) turn.isCut = true; // what is still on its way is not for anybody's ears
    const items = await this.#speaker.stop();
    for (const { item, played } of items) {
      const cut = this.#byItem.get(item);
      if (!cut || cut.isOver) continue;
      cut.playedSamples = played;
      this.#truncate(cut);
      this.#finish(cut, "interrupted");
    }
    if (turn && !turn.isOver) {
      if (turn.itemId) this.#truncate(turn);
      this.#finish(turn, "interrupted");
    }
  }

  #cancel(turn) {
    this.#send({ type: "response.cancel", response_id: turn.responseId }, turn);
  }

  #truncate(turn) {
    this.#send(
      {
        type: "conversation.item.truncate",
        item_id: turn.itemId,
        content_index: 0,
        audio_end_ms: turn.playedMs,
      },
      turn,
    );
  }

  /** Asks for a reply, once the one before it is over: a conversation has one at a time. */
  #ask(turn) {
    const isFree = this.#awaiting.length === 0 && !this.#turns.some((each) => each.isBeingMade);
    this.#wait(turn);
    if (isFree) this.#send({ type: "response.create" }, turn);
    else this.#postponed.push(turn);
  }

  #askNext() {
    const turn = this.#postponed.shift();
    if (turn) this.#send({ type: "response.create" }, turn);
  }

  #wait(turn) {
    turn.endedAt = performance.now();
    turn.phase = "waiting";
    this.#awaiting.push(turn);
    this.onturn(turn);
  }

  #finish(turn, phase, failure = "") {
    turn.phase = phase;
    turn.failure = failure;
    this.onturn(turn);
  }

  #add(turn) {
    this.#turns.push(turn);
    this.onturn(turn);
    return turn;
  }

  #forget(turn) {
    this.#turns = this.#turns.filter((each) => each !== turn);
    turn.phase = "forgotten";
    this.onturn(turn);
  }

  #send(event, turn = null) {
    const id = `page_${(this.#eventCount += 1)}`;
    if (turn) this.#byEvent.set(id, turn);
    return this.#connection.send({ event_id: id, ...event });
  }
}
