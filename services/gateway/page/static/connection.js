// The socket to the gateway, which is opened again for as long as the page is there.
//
// Its state is one of
//   {name: "connecting"}
//   {name: "open"}
//   {name: "waiting", message, seconds}   gone, or no room; tried again then
//   {name: "key", message}                it needs an API key, or another one

const FIRST_WAIT_SECONDS = 0.5;
const MOST_WAIT_SECONDS = 15;
const KEY_NAME = "api-key";

export class Connection {
  #socket = null;
  #timer = null;
  #tries = 0;
  #refusal = null;

  state = { name: "connecting" };
  model = "";

  /** onstate(state) */
  onstate = () => {};
  /** onevent(event): what the server says. */
  onevent = () => {};

  constructor() {
    window.addEventListener("online", () => this.state.name === "waiting" && this.open());
  }

  get key() {
    return sessionStorage.getItem(KEY_NAME) ?? "";
  }

  set key(key) {
    if (key) sessionStorage.setItem(KEY_NAME, key);
    else sessionStorage.removeItem(KEY_NAME);
  }

  /** Asks the gateway over HTTP, with the key. */
  fetch(path, options = {}) {
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    return fetch(new URL(path, document.baseURI), { ...options, headers });
  }

  /** Opens it now, whatever was planned. */
  async open() {
    clearTimeout(this.#timer);
    this.#leave();
    this.#become({ name: "connecting" });
    // Browsers don't say why a socket was refused; a request's answer does.
    const refusal = await this.#ask();
    if (this.state.name !== "connecting") return;
    if (refusal) this.#refused(refusal);
    else this.#connect();
  }

  /** Whether it went out: nothing is kept for later, for later nobody means it any more. */
  send(event) {
    if (this.state.name !== "open") return false;
    this.#socket.send(JSON.stringify(event));
    return true;
  }

  async #ask() {
    try {
      const response = await this.fetch("v1/models", { signal: AbortSignal.timeout(10000) });
      const body = await response.json();
      if (!response.ok) return { status: response.status, ...body.error };
      this.model = body.data[0].id;
      return null;
    } catch {
      return { status: 0, message: "The server cannot be reached." };
    }
  }

  #connect() {
    const url = new URL(`v1/realtime?model=${encodeURIComponent(this.model)}`, document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const protocols = ["realtime"];
    if (this.key) protocols.push(`openai-insecure-api-key.${this.key}`);
    const socket = new WebSocket(url, protocols);
    this.#socket = socket;
    this.#refusal = null;
    socket.onmessage = ({ data }) => this.#hear(JSON.parse(data));
    socket.onclose = ({ reason }) => {
      this.#socket = null;
      this.#refused(this.#refusal ?? { status: 0, message: reason || "The connection was lost." });
    };
  }

  #hear(event) {
    if (event.type === "session.created") {
      this.#tries = 0;
      this.#become({ name: "open" });
    } else if (event.type === "error") {
      // Should the socket close now, this is why.
      this.#refusal = event.error;
    }
    this.onevent(event);
  }

  #refused({ status, type, message }) {
    if (status === 401 || status === 403 || type === "authentication_error" || type === "permission_error") {
      this.#become({ name: "key", message: this.key ? `This key was refused: ${message}.` : "" });
    } else {
      const isFull = status === 429 || type === "rate_limit_error";
      const most = Math.min(MOST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** this.#tries);
      // Not all pages at the same moment.
      const seconds = most * (0.75 + Math.random() / 4);
      this.#tries += 1;
      this.#timer = setTimeout(() => this.open(), seconds * 1000);
      this.#become({
        name: "waiting",
        message: isFull ? `The mesh is full: ${message}.` : message,
        seconds,
      });
    }
  }

  #leave() {
    if (!this.#socket) return;
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close();
    this.#socket = null;
  }

  #become(state) {
    this.state = state;
    this.onstate(state);
  }
}
