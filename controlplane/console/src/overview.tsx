// What goes on: pools, processors, the last ten minutes, what happened.

import { useEffect, useMemo, useState } from "preact/hooks";
import { Chart } from "./chart";
import { Troubles, useDevices } from "./devices";
import { type Mark, marksWith } from "./figures";
import { clock, count, duration, perSecond, size, time } from "./format";
import { type Past, useAsked } from "./hooks";
import type { KindFigures, Occurrence, Pool, Snapshot, Status } from "./model";
import { Bar, State, Table, Wrong } from "./parts";

interface Props {
  status: Status | null;
  past: Past;
  occurrences: Occurrence[];
}

export function Overview({ status, past, occurrences }: Props) {
  const { troubles, mistake } = useDevices(60_000, status?.pools ?? [], occurrences);
  return (
    <>
      <Pools pools={status?.pools ?? null} />
      <Wrong mistake={mistake} />
      <Troubles troubles={troubles} />
      <Charts past={past} />
      <div class="beside">
        <Processors status={status} past={past} />
        <Feed occurrences={occurrences} isKnown={past.newest !== null} />
      </div>
    </>
  );
}

/** What an operator should look at, in a word or two each. */
export function troubles(pool: Pool): string[] {
  const lost = pool.devices.filter((device) => device.lost_since_ns !== undefined).length;
  const silent = pool.devices.filter((device) => device.stalled_since_ns !== undefined).length;
  const out = (pool.sides ?? []).filter((side) => side.state === "out").length;
  const resync = (pool.sides ?? []).filter((side) => side.state === "resync").length;
  const damaged = pool.scrub?.damaged_blocks ?? 0;
  const said = (number: number, what: string) => (number > 0 ? [`${number} ${what}`] : []);
  return [
    ...said(lost, lost === 1 ? "device lost" : "devices lost"),
    ...said(silent, silent === 1 ? "device silent" : "devices silent"),
    ...said(out, out === 1 ? "side out" : "sides out"),
    ...said(resync, "resynchronised"),
    ...said(damaged, damaged === 1 ? "damaged block" : "damaged blocks"),
  ];
}

function Pools({ pools }: { pools: Pool[] | null }) {
  return (
    <section>
      <h2>Pools</h2>
      <Table columns={["Pool", "State", "Used", ">In use", ">Size", ">Free soon", ">Volumes", ">Snapshots", "Look at"]} empty={pools ? "No pool yet. They are made on the page Devices." : "…"}>
        {(pools ?? []).map((pool) => (
          <tr key={pool.name}>
            <td><a href="#/pools">{pool.name}</a></td>
            <td><State name={pool.state} /></td>
            <td><Bar part={pool.used_bytes} whole={pool.total_bytes} /></td>
            <td class="right">{size(pool.used_bytes)}</td>
            <td class="right">{size(pool.total_bytes)}</td>
            <td class="right">{size(pool.pending_bytes)}</td>
            <td class="right">{count(pool.volumes)}</td>
            <td class="right">{count(pool.snapshots)}</td>
            <td class="wrap">{[...troubles(pool), ...(pool.error ? [pool.error] : [])].join("; ") || "-"}</td>
          </tr>
        ))}
      </Table>
    </section>
  );
}

function Charts({ past }: { past: Past }) {
  const marks = useMarks();
  const { times_s, read, write } = useMemo(() => {
    const of = (kind: "read" | "write", name: keyof KindFigures) => past.points.map((point) => point.figures?.[kind][name] ?? null);
    const all = (kind: "read" | "write") => ({ per_s: of(kind, "per_s"), bytes: of(kind, "bytes_per_s"), p50: of(kind, "p50_ns"), p99: of(kind, "p99_ns") });
    return { times_s: past.points.map((point) => point.time_ms / 1000), read: all("read"), write: all("write") };
  }, [past.points]);
  return (
    <section class="charts">
      <Chart title="Requests a second" times_s={times_s} marks={marks} show={short}
        lines={[{ name: "reads", colour: "read", values: read.per_s }, { name: "writes", colour: "write", values: write.per_s }]} />
      <Chart title="Throughput" times_s={times_s} marks={marks} show={perSecond}
        lines={[{ name: "read", colour: "read", values: read.bytes }, { name: "written", colour: "write", values: write.bytes }]} />
      <Chart title="Latency, from the request to the reply" times_s={times_s} marks={marks} show={duration} logarithmic
        lines={[
          { name: "reads p50", colour: "read", values: read.p50 },
          { name: "reads p99", colour: "read", dashed: true, values: read.p99 },
          { name: "writes p50", colour: "write", values: write.p50 },
          { name: "writes p99", colour: "write", dashed: true, values: write.p99 },
        ]} />
    </section>
  );
}

const short = (value: number) => (value >= 10_000 ? `${+(value / 1000).toFixed(1)}k` : count(value));

function useMarks(): Mark[] {
  const { data } = useAsked<Snapshot[]>("/v1/snapshots", 30_000);
  const [marks, setMarks] = useState<Mark[]>([]);
  useEffect(() => {
    if (data) {
      setMarks((before) => marksWith(before, data, Date.now() / 1000));
    }
  }, [data]);
  return marks;
}

function Processors({ status, past }: { status: Status | null; past: Past }) {
  const rates = past.points.at(-1)?.figures?.processors_per_s ?? [];
  const total = rates.reduce((sum, rate) => sum + rate, 0);
  return (
    <section>
      <h2>Processors</h2>
      <Table columns={[">Processor", ">Core", ">Shards", ">Sessions", ">Requests/s", "Share", "Buffers", "Waits by"]} empty="-">
        {(status?.processors ?? []).map((processor, index) => (
          <tr key={processor.processor}>
            <td class="right">{processor.processor}</td>
            <td class="right">{processor.core ?? "not pinned"}</td>
            <td class="right">{processor.shards.length}</td>
            <td class="right">{count(processor.sessions)}</td>
            <td class="right">{rates[index] === undefined ? "-" : count(rates[index])}</td>
            <td><Bar part={rates[index] ?? 0} whole={total} share text="of the requests of clients" /></td>
            <td><Bar part={processor.buffer_bytes_used} whole={processor.buffer_bytes} /></td>
            <td>{processor.polls ? "polling" : "sleeping"}</td>
          </tr>
        ))}
      </Table>
      {status && (
        <p class="quiet">
          {status.connections} of {count(status.connection_limit)} connections; running for {duration(status.uptime_ns)}; NBD on {status.listeners.join(", ") || "no address"}
        </p>
      )}
    </section>
  );
}

function Feed({ occurrences, isKnown }: { occurrences: Occurrence[]; isKnown: boolean }) {
  return (
    <section>
      <h2>What happened</h2>
      <ol class="feed" tabIndex={0}>
        {occurrences.slice(0, 200).map((occurrence) => (
          <li key={`${occurrence.number} ${occurrence.time_ns}`} class={occurrence.level}>
            <time title={time(occurrence.time_ns)}>{clock(occurrence.time_ns)}</time>
            <b title={subject(occurrence)}>{subject(occurrence)}</b>
            <span>{occurrence.text}</span>
          </li>
        ))}
        {occurrences.length === 0 && <li class="empty">{isKnown ? "Nothing yet." : "…"}</li>}
      </ol>
    </section>
  );
}

const subject = (occurrence: Occurrence) => [occurrence.pool, occurrence.subject].filter(Boolean).join("/");
