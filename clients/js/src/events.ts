/** One server-sent event: its position, and its data where it has any. */
export interface Sent {
  id: string;
  data: string;
}

/**
 * The server-sent events of a response's body, as the HTML standard has them.
 *
 * Written here, because a page loads this client without a bundler: it has no dependencies. The
 * gateway ends its lines with `\n`, and its ids and data are JSON in one line.
 */
export async function* sent(
  body: ReadableStream<Uint8Array>,
  alive: () => void,
): AsyncGenerator<Sent, void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let id = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      alive();
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const [, field, text = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
        if (line === "") {
          if (id !== "" || data.length > 0) {
            yield { id, data: data.join("\n") };
          }
          data = [];
        } else if (field === "id") {
          id = text;
        } else if (field === "data") {
          data.push(text);
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
