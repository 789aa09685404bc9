// Small parts of which the pages are made.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { percent, size } from "./format";
import { useDoing } from "./hooks";
import type { Mistake } from "./model";

export function Wrong({ mistake }: { mistake: Mistake | null }) {
  return mistake && (
    <p class="wrong" role="alert">
      <b>{mistake.message}</b>
      {mistake.hint && <span>{mistake.hint}</span>}
    </p>
  );
}

const GOOD = ["open", "in_sync", "done", "there", "active"];
const BAD = ["failed", "device_lost", "device_shrunk", "stopped", "out", "lost", "damaged", "error"];

export function State({ name, text }: { name: string; text?: string }) {
  const kind = GOOD.includes(name) ? "good" : BAD.includes(name) ? "bad" : "middling";
  return <span class={`state ${kind}`}>{text ?? name.replaceAll("_", " ")}</span>;
}

/** A part of a whole; one that is nearly full is marked, unless it is somebody's share of something. */
export function Bar({ part, whole, text, share }: { part: number; whole: number; text?: string; share?: boolean }) {
  const filled = whole > 0 ? Math.min(1, part / whole) : 0;
  return (
    <span class="bar" title={text ?? `${size(part)} of ${size(whole)}`}>
      <span class={filled > 0.9 && !share ? "high" : ""} style={{ width: `${filled * 100}%` }} />
      <em>{percent(part, whole)}</em>
    </span>
  );
}

export function Pairs({ rows }: { rows: [string, ComponentChildren][] }) {
  return (
    <dl>
      {rows.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value ?? "-"}</dd>
        </div>
      ))}
    </dl>
  );
}

/** A table. A column whose name begins with `>` is set to the right. */
export function Table({ columns, children, empty }: { columns: string[]; children: ComponentChildren[]; empty: string }) {
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>{columns.map((name, index) => <th key={index} class={name.startsWith(">") ? "right" : ""}>{name.replace(">", "")}</th>)}</tr>
        </thead>
        <tbody>{children.length > 0 ? children : <tr><td colSpan={columns.length} class="empty">{empty}</td></tr>}</tbody>
      </table>
    </div>
  );
}

export function Copy({ text }: { text: string }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return (
    <span class="copy">
      <code>{text}</code>
      <button type="button" class="small" onClick={copy} aria-label={`copy ${text}`}>{copied ? "copied" : "copy"}</button>
    </span>
  );
}

/** A button that does something at once; what goes wrong is shown beside it. */
export function Act({ name, act, disabled }: { name: string; act: () => Promise<unknown>; disabled?: boolean }) {
  const { busy, mistake, clear, doing } = useDoing();
  return (
    <>
      <button type="button" disabled={busy || disabled} onClick={() => doing(act)}>{name}</button>
      {mistake && (
        <Dialog title={name} close={clear}>
          <Wrong mistake={mistake} />
          <menu><button type="button" autofocus onClick={clear}>Close</button></menu>
        </Dialog>
      )}
    </>
  );
}

function Dialog({ title, close, children }: { title: string; close: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} onClose={close} onCancel={close}>
      <h2>{title}</h2>
      {children}
    </dialog>
  );
}

export interface Field {
  name: string;
  label: string;
  kind?: "text" | "check" | "choice" | "lines";
  value?: string;
  choices?: string[];
  hint?: string;
  optional?: boolean;
}

export type Values = Record<string, string>;

/** What was typed, one a line. */
export function linesOf(text: string | undefined): string[] {
  return (text ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
}

export interface Question {
  title: string;
  text?: ComponentChildren;
  fields?: Field[];
  /** What has to be typed before it is done. */
  typed?: string;
  button: string;
  dangerous?: boolean;
  act: (values: Values) => Promise<unknown>;
}

/** A button that asks first: for what is needed, or whether it is meant. */
export function Ask({ question, name, small, disabled }: { question: Question; name: string; small?: boolean; disabled?: boolean }) {
  const [open, setOpen] = useState(false);
  return (
    <>
      <button type="button" class={`${small ? "small" : ""} ${question.dangerous ? "dangerous" : ""}`} disabled={disabled} onClick={() => setOpen(true)}>
        {name}
      </button>
      {open && <Form question={question} close={() => setOpen(false)} />}
    </>
  );
}

function Form({ question, close }: { question: Question; close: () => void }) {
  const fields = question.fields ?? [];
  const [values, setValues] = useState<Values>(Object.fromEntries(fields.map((field) => [field.name, field.value ?? ""])));
  const [typed, setTyped] = useState("");
  const { busy, mistake, doing } = useDoing();
  const set = (name: string, value: string) => setValues((before) => ({ ...before, [name]: value }));
  const submit = async (event: Event) => {
    event.preventDefault();
    if (await doing(() => question.act(values))) {
      close();
    }
  };
  const ready = (question.typed === undefined || typed === question.typed)
    && fields.every((field) => field.optional || field.kind === "check" || values[field.name] !== "");
  return (
    <Dialog title={question.title} close={close}>
      <form onSubmit={submit}>
        {question.text && <div class="text">{question.text}</div>}
        {fields.map((field, index) => (
          <label key={field.name} class={field.kind === "check" ? "check" : ""}>
            <span>{field.label}</span>
            <Input field={field} value={values[field.name] ?? ""} set={(value) => set(field.name, value)} first={index === 0} />
            {field.hint && <small>{field.hint}</small>}
          </label>
        ))}
        {question.typed !== undefined && (
          <label>
            <span>Type <b>{question.typed}</b> to go on</span>
            <input value={typed} onInput={(event) => setTyped(event.currentTarget.value)} autofocus={fields.every((field) => field.kind === "check")} autocomplete="off" spellcheck={false} />
          </label>
        )}
        <Wrong mistake={mistake} />
        <menu>
          <button type="button" onClick={close} autofocus={question.typed === undefined && fields.length === 0}>Cancel</button>
          <button type="submit" class={question.dangerous ? "dangerous" : "main"} disabled={!ready || busy}>{busy ? "…" : question.button}</button>
        </menu>
      </form>
    </Dialog>
  );
}

function Input({ field, value, set, first }: { field: Field; value: string; set: (value: string) => void; first: boolean }) {
  if (field.kind === "check") {
    return <input type="checkbox" checked={value === "yes"} onChange={(event) => set(event.currentTarget.checked ? "yes" : "")} />;
  }
  if (field.kind === "choice") {
    return (
      <select value={value} onChange={(event) => set(event.currentTarget.value)}>
        {field.choices?.map((choice) => <option key={choice} value={choice}>{choice}</option>)}
      </select>
    );
  }
  if (field.kind === "lines") {
    return <textarea rows={4} value={value} onInput={(event) => set(event.currentTarget.value)} autofocus={first} spellcheck={false} />;
  }
  return <input value={value} onInput={(event) => set(event.currentTarget.value)} autofocus={first} autocomplete="off" spellcheck={false} />;
}
