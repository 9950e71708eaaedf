// The browser tests: `node run.mjs --help`.

import { randomBytes } from 'node:crypto';
import { createWriteStream, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import { parseArgs } from 'node:util';
import { APP_SCENARIOS } from './app_scenarios.mjs';
import { check_browsers, launch } from './browsers.mjs';
import { binary_path, start_real_server } from './real_server.mjs';
import { SCENARIOS, SCENARIOS_OF_TODAY } from './scenarios.mjs';
import { start_scripted_server } from './scripted_server.mjs';
import { start_proxy } from './tcp_proxy.mjs';
import { sha256_of, start_webapp } from './webapp.mjs';

const USAGE = `Usage: node run.mjs [OPTION...]

  --size SIZE        of the largest file, such as 50MiB (default) or 1GiB
  --browser NAME     chromium or firefox; both unless given
  --server NAME      real: the binary INCOMING_BIN, or target/debug/incoming
                     scripted: a server of the protocol's first version
                     both, one after the other, unless given
  --only TEXT        scenarios whose name contains it; may be given more than once
  --repeat N         each scenario so many times, one after the other
  --screenshots DIR  where pictures of the pages go; a temporary directory unless given
`;

// Of the largest file. A wait is longer than the longest upload, a scenario has a few of them. They
// only end what has gone wrong: on a busy machine as well, what is waited for comes.
const WAIT_MS = 60_000;
const SLOWEST_BYTES_PER_MS = 5000;
const WAITS_OF_SCENARIO = 6;

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
    ...{ dir, server_kind, server, proxy, app, wait_app, old_app },
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
    timer = setTimeout(() => reject(new Error('took too long')), WAITS_OF_SCENARIO * stage.wait_ms);
  });
  let error = null;
  await Promise.race([scenario(stage), too_long]).catch((reason) => (error = reason));
  clearTimeout(timer);
  const seconds = ((performance.now() - start_ms) / 1000).toFixed(1);
  console.log(`${error ? 'not ok' : 'ok'}  ${stage.browser_name}  ${scenario.name}  ${seconds} s`);
  if (error) console.log(error.stack.replace(/^/gm, '        '));
  return error === null;
}

/** Runs the scenarios in one browser. Returns how many failed. */
async function run_in_browser(browser_name, scenarios, stage, shots_dir) {
  const browser = await launch(browser_name);
  const screenshot = (page, name) => {
    const path = join(shots_dir, `${stage.server_kind}-${browser_name}-${name}.png`);
    return page.screenshot({ path, fullPage: true });
  };
  let failed = 0;
  try {
    for (const scenario of scenarios) {
      if (!(await run_scenario(scenario, { ...stage, browser, browser_name, screenshot }))) failed++;
      if (stage.server.ended?.()) throw new Error(`the server has ended:\n${stage.server.output()}`);
    }
  } finally {
    await browser.close();
  }
  return failed;
}

/** Runs what was asked for at one server. Returns how many failed. */
async function run_at_server(server_kind, options, files, dir, shots_dir) {
  console.log(`server: ${server_kind}`);
  mkdirSync(dir);
  const stage = await set_stage(dir, server_kind);
  Object.assign(stage, { files, wait_ms: WAIT_MS + files.large.length / SLOWEST_BYTES_PER_MS });
  const all = stage.first_version ? SCENARIOS : [...SCENARIOS, ...SCENARIOS_OF_TODAY, ...APP_SCENARIOS];
  const chosen = all.filter(({ name }) => options.only.some((text) => name.includes(text)));
  const scenarios = chosen.flatMap((scenario) => Array(options.repeat).fill(scenario));
  let failed = 0;
  try {
    for (const browser_name of options.browsers) {
      failed += await run_in_browser(browser_name, scenarios, stage, shots_dir);
    }
    for (const error of [stage.app, stage.wait_app, stage.old_app].flatMap((app) => app.errors)) {
      console.log(`not ok  web app: ${error}`);
      failed++;
    }
  } finally {
    await stage.close();
  }
  return failed;
}

async function main() {
  const { values } = parseArgs({
    options: {
      size: { type: 'string', default: '50MiB' },
      browser: { type: 'string' },
      server: { type: 'string' },
      only: { type: 'string', multiple: true, default: [''] },
      repeat: { type: 'string', default: '1' },
      screenshots: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) return console.log(USAGE);
  const choose = (given, all) => {
    if (given && !all.includes(given)) throw new Error(`${given}: expected ${all.join(' or ')}`);
    return given ? [given] : all;
  };
  const browsers = choose(values.browser, ['chromium', 'firefox']);
  const servers = choose(values.server, ['real', 'scripted']);
  const repeat = Number(values.repeat);
  if (!(repeat >= 1)) throw new Error(`--repeat ${values.repeat}: expected a number from 1`);
  check_browsers(browsers);
  if (servers.includes('real')) binary_path();

  const dir = mkdtempSync(join(tmpdir(), 'incoming-browser-'));
  const shots_dir = values.screenshots || mkdtempSync(join(tmpdir(), 'incoming-screenshots-'));
  mkdirSync(shots_dir, { recursive: true });
  let failed = 0;
  try {
    const files = await make_files(join(dir, 'files'), parse_size(values.size));
    for (const server_kind of servers) {
      const options = { browsers, only: values.only, repeat };
      failed += await run_at_server(server_kind, options, files, join(dir, server_kind), shots_dir);
    }
  } finally {
    rmSync(dir, { recursive: true });
  }
  console.log(failed ? `${failed} failed` : 'all passed', `(screenshots: ${shots_dir})`);
  process.exitCode = failed ? 1 : 0;
}

await main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
