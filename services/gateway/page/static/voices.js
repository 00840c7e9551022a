// Which voice answers: those that are there, and adding one.

import { element } from "./element.js";

const ADD_PATH = "v1/audio/voices";

export class Voices {
  #connection;
  #select;
  #wanted = "";

  /** onpick(name) */
  onpick = () => {};
  /** onadded(name) */
  onadded = () => {};

  constructor(connection, { select, button, dialog }) {
    this.#connection = connection;
    this.#select = select;
    select.addEventListener("change", () => this.#pick(select.value));
    button.addEventListener("click", () => dialog.showModal());
    const form = dialog.querySelector("form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#add(dialog, form);
    });
  }

  get picked() {
    return this.#wanted;
  }

  /** Asks which there are. */
  async load() {
    const response = await this.#connection.fetch(ADD_PATH).catch(() => null);
    if (!response?.ok) return;
    const { data } = await response.json();
    const options = data.map(({ name, is_default: isDefault }) => {
      const option = element("option", { value: name }, [name]);
      option.selected = this.#wanted ? name === this.#wanted : isDefault;
      return option;
    });
    this.#select.replaceChildren(...options);
    this.#select.disabled = options.length === 0;
  }

  #pick(name) {
    this.#wanted = name;
    this.onpick(name);
  }

  async #add(dialog, form) {
    const [name, transcript] = ["voice-name", "voice-transcript"].map((id) => form.querySelector(`#${id}`).value.trim());
    const body = new FormData();
    body.append("name", name);
    body.append("transcript", transcript);
    body.append("file", form.querySelector("#voice-file").files[0]);
    const refused = form.querySelector("#voice-refused");
    const submit = form.querySelector("[type=submit]");
    refused.textContent = "";
    submit.disabled = true;
    try {
      const response = await this.#connection.fetch(ADD_PATH, { method: "POST", body });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error.message);
      form.reset();
      dialog.close();
      this.#wanted = name;
      await this.load();
      this.#pick(name);
      this.onadded(name);
    } catch (error) {
      refused.textContent = `The voice was not added: ${error.message}.`;
    } finally {
      submit.disabled = false;
    }
  }
}
