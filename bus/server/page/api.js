// Requests to the broker. A token is kept for this tab only, and forgotten with it.

const KEY = "tensorbus.token";

export function token() {
  return sessionStorage.getItem(KEY);
}

export function keepToken(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

export function headers() {
  const kept = token();
  return kept ? { Authorization: `Bearer ${kept}` } : {};
}

/** What the broker said when it refused. */
export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail ?? document?.title ?? `the broker answered with ${status}`);
    this.status = status;
  }
}

/** The JSON of an answer, null if it has none. Throws a Problem. */
export async function call(method, path, body) {
  const request = { method, headers: headers(), cache: "no-store" };
  if (body !== undefined) request.body = JSON.stringify(body);
  const answer = await fetch(path, request);
  if (!answer.ok) throw await problemOf(answer);
  return answer.status === 204 ? null : answer.json();
}

export async function problemOf(answer) {
  return new Problem(answer.status, await answer.json().catch(() => null));
}
