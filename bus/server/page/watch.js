// The stream of what is going on. It is opened again whenever it ends: after a restart of the broker, after an
// hour, or when another view wants other lists. What is shown meanwhile is what was heard last.

import { headers, problemOf } from "./api.js";

const SILENCE = 25_000; // milliseconds without a sign of life
const WAITS = [300, 600, 1200, 2500, 5000];

export class Watch {
  /** `told(status)` hears of news, `changed(state, problem)` whether there is a connection. */
  constructor(told, changed) {
    this.told = told;
    this.changed = changed;
    this.query = "";
    this.failures = 0;
    this.status = null;
    this.aborter = null;
    this.timer = 0;
  }

  /** Watch with these parameters from now on. */
  open(query) {
    this.query = query;
    this.close();
    this.run();
  }

  close() {
    clearTimeout(this.timer);
    this.aborter?.abort();
    this.aborter = null;
  }

  async run() {
    const aborter = (this.aborter = new AbortController());
    let problem = null;
    try {
      const answer = await fetch(`v1/status/stream?${this.query}`, {
        headers: { Accept: "text/event-stream", ...headers() },
        cache: "no-store",
        signal: aborter.signal,
      });
      if (!answer.ok) throw await problemOf(answer);
      await this.read(answer.body.getReader(), aborter);
    } catch (error) {
      problem = error;
    }
    if (this.aborter !== aborter) return; // another one was opened
    this.changed(problem?.status === 401 || problem?.status === 403 ? "refused" : "lost", problem);
    if (problem?.status === 401) return; // until there is another token
    const wait = WAITS[Math.min(this.failures, WAITS.length - 1)];
    this.failures += 1;
    this.timer = setTimeout(() => this.run(), wait * (0.8 + 0.4 * Math.random()));
  }

  async read(reader, aborter) {
    const decoder = new TextDecoder();
    let text = "";
    let whole = true;
    for (;;) {
      const timer = setTimeout(() => aborter.abort(), SILENCE);
      const { value, done } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return;
      text += decoder.decode(value, { stream: true });
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event.name === "problem") throw Object.assign(new Error(event.data.detail), { status: event.data.status });
        if (event.name !== "status") continue;
        this.status = whole ? event.data : { ...this.status, ...event.data };
        whole = false;
        this.failures = 0;
        this.changed("live", null);
        this.told(this.status);
      }
    }
  }
}

function parse(block) {
  let name = "";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  return { name, data: data ? JSON.parse(data) : null };
}
