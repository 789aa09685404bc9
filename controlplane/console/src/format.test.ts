import assert from "node:assert/strict";
import { test } from "node:test";
import { duration, keep, parseKeep, parsePeriod, parseSize, period, percent, size, stamp, words } from "./format";

test("sizes are said as the command line says them", () => {
  const said: [number, string][] = [
    [0, "0 B"],
    [1023, "1023 B"],
    [4096, "4 KiB"],
    [1.5 * 2 ** 20, "1.50 MiB"],
    [2 ** 30 - 1, "1 GiB"],
    [65.49 * 2 ** 20, "65.5 MiB"],
    [3 * 2 ** 40, "3 TiB"],
  ];
  for (const [bytes, text] of said) {
    assert.equal(size(bytes), text);
  }
});

test("durations have the unit that fits", () => {
  const said: [number, string][] = [
    [0, "0 ns"],
    [999, "999 ns"],
    [6920, "6.92 µs"],
    [12_000_000, "12 ms"],
    [999_999, "1 ms"],
    [1_230_000_000, "1.23 s"],
    [59_000_000_000, "59.0 s"],
    [90_000_000_000, "1 min 30 s"],
    [7_200_000_000_000, "2 h"],
    [90_000_000_000_000, "1 d 1 h"],
  ];
  for (const [ns, text] of said) {
    assert.equal(duration(ns), text);
  }
});

test("sizes are read as the command line reads them", () => {
  const read: [string, number | null][] = [
    ["4096", 4096],
    ["10GiB", 10 * 2 ** 30],
    ["10G", 10 * 2 ** 30],
    [" 10 gb ", 10e9],
    ["1.5M", 1.5 * 2 ** 20],
    ["7 B", 7],
    ["0.3", null],
    ["", null],
    ["lots", null],
    ["-1", null],
    ["99999999P", null],
  ];
  for (const [text, bytes] of read) {
    assert.equal(parseSize(text), bytes, text);
  }
});

test("small things", () => {
  assert.equal(percent(1, 8), "12.5%");
  assert.equal(percent(1, 0), "-");
  assert.equal(stamp(Date.UTC(2026, 10, 22, 11, 17, 59)), "20261122T111759Z");
  assert.equal(words("device_lost"), "device lost");
});

test("periods are read and said as the command line has them", () => {
  const read: [string, number | null][] = [["15m", 900e9], [" 1d ", 86_400e9], ["90s", 90e9], ["2w", 1_209_600e9], ["3min", 180e9], ["0s", null], ["1.5h", null], ["5", null], ["", null], ["m", null], ["99999999d", null]];
  for (const [text, ns] of read) {
    assert.equal(parsePeriod(text), ns, text);
  }
  assert.deepEqual([900e9, 90e9, 86_400e9, 1_209_600e9, 7200e9, 1e9].map(period), ["15m", "90s", "1d", "14d", "2h", "1s"]);
});

test("rules of what is kept are read and said", () => {
  const rules = parseKeep("last=2, daily = 7");
  assert.deepEqual(rules, { last: 2, daily: 7 });
  assert.equal(keep({ ...rules, hourly: 0, yearly: 1 }), "last=2, daily=7, yearly=1");
  for (const wrong of ["", "last", "last=x", "newest=1", "last=1,last=2", "last=1,"]) {
    assert.throws(() => parseKeep(wrong), /no rule/, wrong);
  }
});
