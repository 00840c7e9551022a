// The page: what its buttons and keys do, and what it shows of the connection.

import { Connection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { element } from "./element.js";
import { Ledger } from "./ledger.js";
import { Meter } from "./meter.js";
import { Microphone } from "./microphone.js";
import { loudness } from "./pcm.js";
import { Speaker } from "./speaker.js";
import { Voices } from "./voices.js";

// So that the mesh hears a turn end that the microphone's switch has cut.
const SILENCE_PACKETS = 75;

const at = (id) => document.getElementById(id);

const connection = new Connection();
const speaker = new Speaker();
const microphone = new Microphone();
const conversation = new Conversation(connection, speaker);
const ledger = new Ledger(at("turns"));
const meter = new Meter(at("meter"));
const voices = new Voices(connection, { select: at("voice"), button: at("voice-button"), dialog: at("voice-dialog") });

let isHandsFree = true;
let isHeld = false; // the key to talk
let wasOpen = false;

// --- what is shown

function say(words) {
  at("said").textContent = words;
}

let act = null;

/** A line at the top of the page that stays until it is dismissed, or no longer true. */
function notify(words, button = "", action = null) {
  at("notice-words").textContent = words;
  at("notice-act").textContent = button;
  at("notice-act").hidden = !action;
  at("notice").hidden = !words;
  act = action;
  at("alarm").textContent = words;
}

function clearNotice() {
  notify("");
}

const DOING = { saying: "Listening", waiting: "Thinking", replying: "Replying" };

function showDoing(turn = null) {
  const isTalking = isHandsFree ? microphone.isOpen : isHeld;
  const idle = isHandsFree
    ? microphone.isOpen ? "Listening – just speak" : "Microphone off"
    : "Hold Space, or the button";
  const words = (turn && DOING[turn.phase]) ?? (isHeld ? "Listening" : idle);
  if (at("doing").textContent !== words) {
    at("doing").textContent = words;
    say(words);
  }
  if (!microphone.isOpen && !conversation.isBusy) meter.clear();
  at("talk").dataset.on = isTalking;
  if (isHandsFree) at("talk").setAttribute("aria-pressed", String(microphone.isOpen));
  else at("talk").removeAttribute("aria-pressed");
  const talk = isHandsFree ? (microphone.isOpen ? "Mute the microphone" : "Start talking") : "Hold to talk";
  at("talk").setAttribute("aria-label", talk);
  at("talk").title = isHandsFree ? `${talk} (M)` : `${talk} (Space)`;
  at("hint").replaceChildren(...(isHandsFree ? [element("kbd", {}, ["M"]), " mutes"] : [element("kbd", {}, ["Space"]), " talks"]));
  at("stop").disabled = !conversation.isBusy;
}

conversation.onturn = (turn, level = null) => {
  at("empty").hidden = true;
  ledger.show(turn);
  if (level !== null) meter.add("theirs", level);
  showDoing(turn.isOver || turn.phase === "forgotten" ? conversation.replying : turn);
};

conversation.onerror = (message) => notify(message);

// --- the connection

let countdown = null;
let told = "";

connection.onstate = (state) => {
  clearInterval(countdown);
  at("link").dataset.state = state.name;
  const words = { connecting: "Connecting", open: "Connected", key: "Key needed" }[state.name];
  if (words) at("link-words").textContent = words;
  if (state.name === "open") {
    clearNotice();
    say("Connected");
    told = "";
  } else if (wasOpen) {
    lose();
  }
  if (state.name === "waiting") {
    waitVisibly(state);
  } else if (state.name === "key") {
    at("key-refused").textContent = state.message;
    askKey();
  }
};

function waitVisibly({ message, seconds }) {
  const until = performance.now() + seconds * 1000;
  const show = () => {
    const left = Math.max(0, Math.ceil((until - performance.now()) / 1000));
    at("link-words").textContent = left > 0 ? `Reconnecting in ${left} s` : "Reconnecting";
  };
  show();
  countdown = setInterval(show, 250);
  if (told === message) return; // it is still so, and may have been dismissed
  told = message;
  notify(message, "Try now", () => connection.open());
}

function lose() {
  wasOpen = false;
  isHeld = false;
  conversation.lose();
}

connection.onevent = (event) => {
  if (event.type === "session.created") {
    if (!wasOpen) ledger.divide("A new conversation: what was said above is not remembered");
    wasOpen = true;
    configure();
    voices.load();
  }
  conversation.receive(event);
  showDoing(conversation.replying);
};

function configure() {
  conversation.configure({ isHandsFree, voice: voices.picked });
}

voices.onpick = configure;
voices.onadded = (name) => say(`Voice ${name} added`);

// --- talking

async function openMicrophone() {
  try {
    await microphone.open();
    if (at("notice-act").hidden) clearNotice();
    return true;
  } catch (error) {
    notify(error.message, "Try again", () => (isHandsFree ? listen() : openMicrophone()));
    return false;
  } finally {
    showDoing(conversation.replying);
  }
}

async function listen() {
  await speaker.open();
  await openMicrophone();
}

function mute() {
  microphone.close();
  for (let index = 0; index < SILENCE_PACKETS; index += 1) conversation.hear(new Int16Array(480));
  meter.clear();
  showDoing(conversation.replying);
}

microphone.onpacket = (samples) => {
  if (isHandsFree || isHeld) conversation.hear(samples);
  if (conversation.replying === null || isHeld) meter.add("mine", isHandsFree || isHeld ? loudness(samples) : 0);
};

microphone.onlost = () => {
  notify("The microphone is gone.", "Try again", listen);
  showDoing(conversation.replying);
};

async function hold() {
  if (isHeld) return;
  isHeld = true;
  await speaker.open();
  if (!(await openMicrophone())) isHeld = false;
  if (!isHeld) return;
  conversation.beginTurn();
  showDoing();
}

function release() {
  if (!isHeld) return;
  isHeld = false;
  if (!conversation.endTurn()) say("Too short: hold while you speak");
  showDoing(conversation.replying);
}

function setMode(handsFree) {
  release();
  isHandsFree = handsFree;
  if (microphone.isOpen) microphone.close();
  meter.clear();
  configure();
  showDoing(conversation.replying);
}

// --- buttons and keys

const talk = at("talk");
talk.addEventListener("click", () => {
  if (!isHandsFree) return;
  if (microphone.isOpen) mute();
  else listen();
});
talk.addEventListener("pointerdown", (event) => {
  if (isHandsFree) return;
  talk.setPointerCapture(event.pointerId);
  hold();
});
talk.addEventListener("pointerup", release);
talk.addEventListener("pointercancel", release);
talk.addEventListener("contextmenu", (event) => event.preventDefault());

for (const radio of document.querySelectorAll("[name=mode]")) {
  radio.addEventListener("change", () => setMode(radio.value === "hands-free"));
}

at("typing").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text) return;
  if (connection.state.name !== "open") {
    say("Not connected");
    return;
  }
  at("text").value = "";
  await speaker.open();
  await conversation.type(text);
});

at("stop").addEventListener("click", () => conversation.interrupt());

/** Where a key means a letter, or presses what has the focus. */
function isTaken(event) {
  return event.target.closest("input:not([type=radio]), textarea, select, button:not(#talk), summary, dialog") !== null;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    conversation.interrupt();
  } else if (isTaken(event)) {
    return;
  } else if (event.code === "Space" && !isHandsFree) {
    event.preventDefault();
    if (!event.repeat) hold();
  } else if (event.key === "m" && isHandsFree) {
    talk.click();
  }
});
document.addEventListener("keyup", (event) => {
  if (event.code === "Space" && isHeld) {
    event.preventDefault();
    release();
  }
});
// The key may be released where this page does not see it.
window.addEventListener("blur", release);

at("notice-close").addEventListener("click", clearNotice);
at("notice-act").addEventListener("click", () => {
  const action = act;
  clearNotice();
  action?.();
});

// --- the key, and the colours

const keyDialog = at("key-dialog");

function askKey() {
  at("key").value = connection.key;
  if (!keyDialog.open) keyDialog.showModal();
}

at("key-button").addEventListener("click", () => {
  at("key-refused").textContent = "";
  askKey();
});
keyDialog.querySelector("form").addEventListener("submit", () => {
  connection.key = at("key").value.trim();
  connection.open();
});
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function showTheme() {
  at("theme-button").setAttribute("aria-pressed", String(isDark()));
}

at("theme-button").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  showTheme();
});

showTheme();
showDoing();
connection.open();
