// A small web app for the tests: gets tickets, takes files over and remembers what it was told.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream, readFileSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import http from 'node:http';

const MIME = { html: 'text/html', js: 'text/javascript', mjs: 'text/javascript' };

export async function sha256_of(path) {
  const hash = createHash('sha256');
  for await (const bytes of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(bytes);
  return hash.digest('hex');
}

/**
 * The web app of an upload server. `old_names` makes it speak as the first web apps did: paths
 * without a version, `signalFinishSecret` at the ticket and `secret` in the callback.
 */
export async function start_webapp(server_host, { old_names = false, answer = 'done' } = {}) {
  const backend_url = `http://${server_host}/incoming/${old_names ? '' : '0.1/'}backend`;
  const handovers = new Map(); // ticket id -> what the callback said
  const waiting = new Map(); // ticket id -> who waits for it
  const secrets = new Map();
  const pages = new Map(); // path -> text and type
  let last_ticket = null;

  async function command(name, params, again_status = null) {
    const url = `${backend_url}/${name}?${new URLSearchParams(params)}`;
    for (;;) {
      const response = await fetch(url, { method: 'POST' });
      const text = await response.text();
      if (response.ok) return text;
      if (response.status !== again_status || !listener.listening) {
        throw new Error(`${name}: ${response.status} ${text}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async function new_ticket() {
    const secret = createHash('sha256').update(String(Math.random())).digest('hex');
    const id = await command('new_upload', {
      signalFinishURL: `http://${app.host}/api/backend/upload_finished`,
      removeFileWhenFinished: 'false',
      [old_names ? 'signalFinishSecret' : 'backendSecret']: secret,
    });
    secrets.set(id, secret);
    last_ticket = id;
    return id;
  }

  async function take_over(form) {
    const id = form.get('id');
    if (form.get(old_names ? 'secret' : 'backendSecret') !== secrets.get(id)) return [403, 'wrong secret'];
    const handover = Object.fromEntries(form);
    if (handover.cancelled !== 'yes') {
      handover.sha256 = await sha256_of(handover.filename);
      await unlink(handover.filename);
    }
    handovers.set(id, handover);
    for (const resolve of waiting.get(id) || []) resolve(handover);
    return [200, handover.cancelled === 'yes' ? '' : answer];
  }

  const listener = http.createServer(async (request, response) => {
    const url = new URL(request.url, 'http://app');
    let [status, text, type] = [404, 'not found', 'text/plain'];
    try {
      if (url.pathname === '/api/frontend/request_upload') {
        [status, text] = [200, await new_ticket()];
      } else if (url.pathname === '/api/backend/upload_finished') {
        let body = '';
        for await (const bytes of request) body += bytes;
        [status, text] = await take_over(new URLSearchParams(body));
      } else if (pages.has(url.pathname)) {
        const page = pages.get(url.pathname);
        [status, text, type] = [200, await page.text(), page.type];
      }
    } catch (error) {
      app.errors.push(error.message);
      [status, text] = [500, error.message];
    }
    response.writeHead(status, { 'Content-Type': `${type}; charset=utf-8`, 'Cache-Control': 'no-store' });
    response.end(text);
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');

  const app = {
    host: `127.0.0.1:${listener.address().port}`,
    errors: [],
    new_ticket,
    last_ticket: () => last_ticket,
    cancel: (id) => command('cancel_upload', { id, backendSecret: secrets.get(id) }),
    handovers,
    /** What the callback for this ticket says, when it comes. */
    handover(id) {
      if (handovers.has(id)) return Promise.resolve(handovers.get(id));
      return new Promise((resolve) => waiting.set(id, [...(waiting.get(id) || []), resolve]));
    },
    /** Ends the wait of a server that was answered `wait` when it handed the file over. */
    async finish(id) {
      await app.handover(id);
      // The first web apps did not give their secret here. 412: the server has yet to read the answer.
      const params = old_names ? { id } : { id, backendSecret: secrets.get(id) };
      assert.equal(await command('finish_upload', params, 412), 'ok');
    },
    /** Serves a file; `fill` replaces its {{ placeholders }}. */
    serve(path, file, fill = () => ({})) {
      const type = MIME[file.pathname.split('.').at(-1)];
      const text = async () => {
        const values = await fill();
        return readFileSync(file, 'utf8').replace(/\{\{ (\w+) \}\}/g, (_, name) => values[name]);
      };
      pages.set(path, { text, type });
    },
    close: () => listener.close(),
  };
  return app;
}
