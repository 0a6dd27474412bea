// Figures as people read them.

const NUMBER = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const SHORT_DATE = new Intl.DateTimeFormat("en", {
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const DATE = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

export const DASH = "–";

/** A store without a limit says that it has this much room, in bytes. */
const UNLIMITED = 2 ** 60;

export function isLimited(size) {
  return size < UNLIMITED;
}

export function count(value) {
  return value === null || value === undefined ? DASH : NUMBER.format(value);
}

export function figure(value) {
  if (value === null || value === undefined) return DASH;
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : SHORT.format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return DASH;
  let unit = 0;
  let size = value;
  while (size >= 1023.95 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(size) : size.toFixed(1)} ${UNITS[unit]}`;
}

export function rate(value) {
  return value === null || value === undefined ? DASH : `${bytes(value)}/s`;
}

export function percent(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(part < whole / 10 ? 1 : 0)} %` : DASH;
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function moment(iso) {
  return iso ? DATE.format(new Date(iso)) : DASH;
}

export function shortMoment(iso) {
  return iso ? SHORT_DATE.format(new Date(iso)) : DASH;
}

/** Seconds from one ISO time to another. */
export function between(from, to) {
  return (new Date(to) - new Date(from)) / 1000;
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
