// Where the time of requests goes.

import { useEffect, useMemo, useState } from "preact/hooks";
import { type Answer, answersWith, difference, STAGES, type StageRow, stageRows } from "./figures";
import { count, duration, percent } from "./format";
import { useAsked } from "./hooks";
import type { Stage, Status } from "./model";
import { Table, Wrong } from "./parts";

const PERIOD_MS = 1000;

const WHAT: Record<string, string> = {
  receive: "from the header to the hand-over to the shard; a write's data arrive in it",
  ring: "until the shard took it: the ring to another processor, the backlog of a busy shard",
  map: "until the device was asked: the map, the rest of partly written blocks, the batch",
  device: "until the device was done",
  log: "until it was answered: the log, of flushes also the device's flush",
  held: "until a cut let the answer go",
  reply: "until the last byte of the reply had left",
  total: "from the header to the last byte of the reply",
};

export function Stages({ status }: { status: Status | null }) {
  const { data, mistake } = useAsked<Stage[]>("/v1/stages", PERIOD_MS);
  const [processor, setProcessor] = useState<number | null>(null);
  const [always, setAlways] = useState(false);
  const [answers, setAnswers] = useState<Answer[]>([]);
  const pid = status?.pid ?? 0;
  useEffect(() => {
    if (data) {
      setAnswers((before) => answersWith(before, { time_ms: Date.now(), pid, stages: data }));
    }
  }, [data]);
  const [first, last] = [answers[0], answers.at(-1)];
  const rows = useMemo(() => {
    const counted = always ? last?.stages : first && last && difference(first.stages, last.stages);
    return stageRows(counted ?? [], processor);
  }, [first, last, processor, always]);
  const window_ms = first && last ? last.time_ms - first.time_ms : 0;
  const seconds = always ? (status?.uptime_ns ?? 0) / 1e9 : window_ms / 1000;
  const kinds = [...new Set(rows.map((row) => row.kind))];
  return (
    <>
      <header>
        <h1>Latency, stage by stage</h1>
        <label>
          <span>Processor</span>
          <select value={processor ?? "all"} onChange={(event) => setProcessor(event.currentTarget.value === "all" ? null : Number(event.currentTarget.value))}>
            <option value="all">all</option>
            {(status?.processors ?? []).map(({ processor }) => <option key={processor} value={processor}>{processor}</option>)}
          </select>
        </label>
        <label>
          <span>Counted</span>
          <select value={always ? "start" : "last"} onChange={(event) => setAlways(event.currentTarget.value === "start")}>
            <option value="last">in the last ten seconds</option>
            <option value="start">since the daemon started</option>
          </select>
        </label>
      </header>
      <Wrong mistake={mistake} />
      {data && kinds.length === 0 && <p class="empty">No request {always ? "yet" : "in the last seconds"}.</p>}
      {kinds.map((kind) => <Kind key={kind} kind={kind} rows={rows.filter((row) => row.kind === kind)} seconds={seconds} />)}
    </>
  );
}

function Kind({ kind, rows, seconds }: { kind: string; rows: StageRow[]; seconds: number }) {
  const parts = rows.filter((row) => row.stage !== "total" && row.stage !== "receive");
  const sum = parts.reduce((sum, row) => sum + row.sum_ns, 0);
  const total = rows.find((row) => row.stage === "total");
  return (
    <section>
      <h2>{kind} {total && seconds > 0 && <span class="quiet">{count(total.count / seconds)} a second, {duration(total.p50_ns)} in the median</span>}</h2>
      <div class="stack" role="img" aria-label={`shares of the stages of ${kind}`}>
        {parts.filter((row) => row.sum_ns > 0).map((row) => (
          <span key={row.stage} class={`stage${STAGES.indexOf(row.stage)}`} style={{ flexGrow: row.sum_ns }} title={`${row.stage}: ${percent(row.sum_ns, sum)}`}>{row.stage}</span>
        ))}
      </div>
      <Table columns={["Stage", ">Count", ">A second", ">Mean", ">P50 <", ">P99 <", ">P99.9 <", ">All <", "What it is"]} empty="-">
        {rows.map((row) => (
          <tr key={row.stage} class={row.stage === "total" ? "sum" : ""}>
            <td>{row.stage}</td>
            <td class="right">{count(row.count)}</td>
            <td class="right">{seconds > 0 ? count(row.count / seconds) : "-"}</td>
            <td class="right">{duration(row.sum_ns / row.count)}</td>
            <td class="right">{duration(row.p50_ns)}</td>
            <td class="right">{duration(row.p99_ns)}</td>
            <td class="right">{duration(row.p999_ns)}</td>
            <td class="right">{duration(row.max_ns)}</td>
            <td class="quiet">{WHAT[row.stage] ?? ""}</td>
          </tr>
        ))}
      </Table>
    </section>
  );
}
