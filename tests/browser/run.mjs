// The browser tests: `node run.mjs --help`.

import { randomBytes } from 'node:crypto';
import { createWriteStream, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import { parseArgs } from 'node:util';
import { APP_SCENARIOS } from './app_scenarios.mjs';
import { check_browsers, launch } from './browsers.mjs';
import { start_real_server } from './real_server.mjs';
import { SCENARIOS, SCENARIOS_OF_TODAY } from './scenarios.mjs';
import { start_scripted_server } from './scripted_server.mjs';
import { start_proxy } from './tcp_proxy.mjs';
import { sha256_of, start_webapp } from './webapp.mjs';

const USAGE = `Usage: node run.mjs [OPTION...]

  --size SIZE        of the largest file, such as 50MiB (default) or 1GiB
  --browser NAME     chromium or firefox; both unless given
  --server NAME      real (default): the binary INCOMING_BIN, or target/debug/incoming
                     scripted: a server of the protocol's first version
  --only TEXT        scenarios whose name contains it
  --screenshots DIR  where pictures of the pages go; a temporary directory unless given
`;

const SCENARIO_TIMEOUT_MS = 180_000;
const MIB = 1024 * 1024;

function parse_size(text) {
  const match = /^(\d+)(KiB|MiB|GiB)?$/.exec(text);
  if (!match) throw new Error(`--size ${text}: expected for example 50MiB or 1GiB`);
  return Number(match[1]) * ({ KiB: 1024, MiB: MIB, GiB: 1024 * MIB }[match[2]] || 1);
}

async function make_file(dir, name, length) {
  const path = join(dir, name);
  const stream = createWriteStream(path);
  for (let left = length; left > 0; left -= MIB) {
    if (!stream.write(randomBytes(Math.min(left, MIB)))) await new Promise((go) => stream.once('drain', go));
  }
  stream.end();
  await finished(stream);
  return { path, name, length, sha256: await sha256_of(path) };
}

async function make_files(dir, size_bytes) {
  mkdirSync(dir);
  return {
    large: await make_file(dir, 'large.bin', size_bytes),
    middle: await make_file(dir, 'middle.bin', 25 * MIB + 12_345),
    other: await make_file(dir, 'other.bin', 3 * MIB + 1),
    empty: await make_file(dir, 'empty.txt', 0),
    unicode: await make_file(dir, 'Übergrößenträger 日本語 😀 & <b>.bin', 700_001),
  };
}

/** The server behind its proxy, and the web apps that use it. */
async function set_stage(dir, server_kind) {
  const storage_dir = join(dir, 'storage');
  mkdirSync(storage_dir);
  const start = server_kind === 'real' ? start_real_server : start_scripted_server;
  const server = await start(storage_dir);
  const proxy = await start_proxy(server.host);
  const app = await start_webapp(server.host);
  const wait_app = await start_webapp(server.host, { answer: 'wait' });
  const old_app = await start_webapp(server.host, { answer: 'wait', old_names: true });
  const here = (path) => new URL(path, import.meta.url);
  const old_values = async () => ({
    scheme: 'http',
    public_incoming_host: proxy.host,
    upload_id: await old_app.new_ticket(),
  });
  app.serve('/plain', here('pages/plain.html'), () => ({ server_host: proxy.host }));
  app.serve('/module', here('pages/module.html'), async () => ({
    server_host: proxy.host,
    upload_id: await app.new_ticket(),
  }));
  app.serve('/js/index.mjs', here('../../js/index.mjs'));
  app.serve('/js/incoming.js', here('../../js/incoming.js'));
  old_app.serve('/seed1', here('pages/seed1.html'), old_values);
  old_app.serve('/seed2', here('pages/seed2.html'), old_values);
  return {
    ...{ dir, server, proxy, app, wait_app, old_app },
    first_version: server_kind === 'scripted',
    async close() {
      for (const part of [app, wait_app, old_app, proxy]) part.close();
      await server.stop();
    },
  };
}

async function run_scenario(scenario, stage) {
  const start_ms = performance.now();
  let timer;
  const too_long = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('took too long')), SCENARIO_TIMEOUT_MS);
  });
  let error = null;
  await Promise.race([scenario(stage), too_long]).catch((reason) => (error = reason));
  clearTimeout(timer);
  const seconds = ((performance.now() - start_ms) / 1000).toFixed(1);
  console.log(`${error ? 'not ok' : 'ok'}  ${stage.browser_name}  ${scenario.name}  ${seconds} s`);
  if (error) console.log(error.stack.replace(/^/gm, '        '));
  return error === null;
}

async function main() {
  const { values } = parseArgs({
    options: {
      size: { type: 'string', default: '50MiB' },
      browser: { type: 'string' },
      server: { type: 'string', default: 'real' },
      only: { type: 'string', default: '' },
      screenshots: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) return console.log(USAGE);
  const names = values.browser ? [values.browser] : ['chromium', 'firefox'];
  check_browsers(names);

  const dir = mkdtempSync(join(tmpdir(), 'incoming-browser-'));
  const shots_dir = values.screenshots || mkdtempSync(join(tmpdir(), 'incoming-screenshots-'));
  mkdirSync(shots_dir, { recursive: true });
  let stage = null;
  let failed = 0;
  try {
    const files = await make_files(join(dir, 'files'), parse_size(values.size));
    stage = await set_stage(dir, values.server);
    const all = stage.first_version ? SCENARIOS : [...SCENARIOS, ...SCENARIOS_OF_TODAY, ...APP_SCENARIOS];
    const scenarios = all.filter((scenario) => scenario.name.includes(values.only));
    for (const browser_name of names) {
      const browser = await launch(browser_name);
      const screenshot = (page, name) => page.screenshot({ path: join(shots_dir, `${browser_name}-${name}.png`) });
      try {
        for (const scenario of scenarios) {
          if (!(await run_scenario(scenario, { ...stage, files, browser, browser_name, screenshot }))) failed++;
          if (stage.server.ended?.()) throw new Error(`the server has ended:\n${stage.server.output()}`);
        }
      } finally {
        await browser.close();
      }
    }
    for (const app of [stage.app, stage.wait_app, stage.old_app]) {
      for (const error of app.errors) console.log(`not ok  web app: ${error}`);
      failed += app.errors.length;
    }
  } finally {
    if (stage) await stage.close();
    rmSync(dir, { recursive: true });
  }
  console.log(failed ? `${failed} failed` : 'all passed', `(screenshots: ${shots_dir})`);
  process.exitCode = failed ? 1 : 0;
}

await main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
