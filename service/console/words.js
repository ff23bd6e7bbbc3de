// Numbers and moments in words.

export const FEW_ITEMS = 200; // below, chance alone moves a ratio by more than six points

export const percent = (value) => (value === null || value === undefined ? "unknown" : `${(100 * value).toFixed(1)}\u00a0%`);
export const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : "±"}${Math.abs(100 * value).toFixed(1)}`;
export const some = (items, kind) => `${items.toLocaleString()} ${kind} items${items && items < FEW_ITEMS ? ", too few to say much" : ""}`;
export const short = (value) => String(Number(value.toFixed(4)));
export const clock = (moment) => moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function within(share, items) {
  // Wilson's 95 % interval: which ratios so few items may have come from.
  const z = 1.96;
  const middle = (share + (z * z) / (2 * items)) / (1 + (z * z) / items);
  const margin = (z * Math.sqrt((share * (1 - share)) / items + (z * z) / (4 * items * items))) / (1 + (z * z) / items);
  return [Math.max(middle - margin, 0), Math.min(middle + margin, 1)];
}

export function ago(seconds) {
  for (const [size, name] of [[172800, "days"], [7200, "hours"], [120, "minutes"]])
    if (seconds >= size) return `${Math.floor(seconds / (size / 2))} ${name}`;
  return `${Math.max(Math.round(seconds), 1)} s`;
}
