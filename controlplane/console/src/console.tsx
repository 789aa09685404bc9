// The console: who may see it, what is shown, whether the daemon is there.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { admit, hasKey, SESSION } from "./api";
import { Devices } from "./devices";
import { time } from "./format";
import { mistakeOf, type Past, useAsked, useOccurrences, usePast } from "./hooks";
import type { Mistake, Status } from "./model";
import { Overview } from "./overview";
import { Failures, Wrong } from "./parts";
import { Pools } from "./pools";
import { Schedules } from "./schedules";
import { Snapshots } from "./snapshots";
import { Stages } from "./stages";
import { Volumes } from "./volumes";

const PAGES: [string, string][] = [
  ["", "Overview"],
  ["pools", "Pools"],
  ["volumes", "Volumes"],
  ["snapshots", "Snapshots"],
  ["schedules", "Schedules"],
  ["devices", "Devices"],
  ["stages", "Latency"],
];

function App() {
  const [known, setKnown] = useState(hasKey());
  const [mistake, setMistake] = useState<Mistake | null>(null);
  const [page, setPage] = useState(pageOf(location.hash));
  useEffect(() => {
    const come = () => {
      const letIn = admit().then(() => setMistake(null), (error) => setMistake(mistakeOf(error)));
      void letIn.then(() => setPage(pageOf(location.hash)));
    };
    const session = () => setKnown(hasKey());
    window.addEventListener("hashchange", come);
    window.addEventListener(SESSION, session);
    come();
    return () => {
      window.removeEventListener("hashchange", come);
      window.removeEventListener(SESSION, session);
    };
  }, []);
  if (!known) {
    return <Closed mistake={mistake} />;
  }
  return <Console page={page} />;
}

function pageOf(hash: string): string {
  const name = hash.replace(/^#\/?/, "");
  return PAGES.some(([path]) => path === name) ? name : "";
}

function Closed({ mistake }: { mistake: Mistake | null }) {
  return (
    <main class="closed">
      <h1>Stillpoint</h1>
      {mistake ? <Wrong mistake={mistake} /> : (
        <p>
          This browser has no key. Open the address that <code>stillpoint console</code> prints; Enter prints another one.
        </p>
      )}
    </main>
  );
}

function Console({ page }: { page: string }) {
  const status = useAsked<Status>("/v1/status", 2000);
  const past = usePast();
  const occurrences = useOccurrences(past);
  useKeys();
  useEffect(() => {
    document.title = `${PAGES.find(([path]) => path === page)?.[1]} · Stillpoint`;
  }, [page]);
  return (
    <>
      <nav>
        <strong>Stillpoint</strong>
        {PAGES.map(([path, name], index) => (
          <a key={path} href={`#/${path}`} aria-current={path === page ? "page" : undefined} title={`key ${index + 1}`}>{name}</a>
        ))}
        <span class="version">{status.data && `${status.data.version}`}</span>
      </nav>
      <Away past={past} />
      <Failures />
      <main>
        {page === "" && <Overview status={status.data} past={past} occurrences={occurrences} />}
        {page === "pools" && <Pools status={status.data} />}
        {page === "volumes" && <Volumes status={status.data} />}
        {page === "snapshots" && <Snapshots />}
        {page === "schedules" && <Schedules />}
        {page === "devices" && <Devices status={status.data} occurrences={occurrences} />}
        {page === "stages" && <Stages status={status.data} />}
      </main>
    </>
  );
}

/** Whether the daemon, or the console, is away; what is shown is of before then. */
function Away({ past: { away, lost } }: { past: Past }) {
  if (lost) {
    return <div class="away" role="alert"><b>{lost.message}</b> {lost.hint}</div>;
  }
  return away && <div class="away" role="alert"><b>Not reachable since {time(away.since_ms * 1e6)}.</b> {away.why}. It is looked for each second.</div>;
}

/** 1 to 7: the pages. */
function useKeys() {
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName) || document.querySelector("dialog[open]");
      const page = PAGES[Number(event.key) - 1];
      if (page && !typing && !event.ctrlKey && !event.altKey && !event.metaKey) {
        location.hash = `#/${page[0]}`;
      }
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, []);
}

const place = document.getElementById("console");
if (place) {
  render(<App />, place);
}
