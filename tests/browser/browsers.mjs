// Finds and starts Debian's browsers.

import { existsSync } from 'node:fs';
import puppeteer from 'puppeteer-core';

const CHROMIUM = '/usr/bin/chromium';
const FIREFOX = '/usr/bin/firefox-esr';
const START_TIMEOUT_MS = 120_000;

/** Throws with the remedy when a browser is missing. */
export function check_browsers(names) {
  const missing = names.filter((name) => !existsSync(name === 'firefox' ? FIREFOX : CHROMIUM));
  if (missing.length > 0) {
    throw new Error(
      `missing: ${missing.join(', ')}. Install with:\n` +
        '  apt-get install -y --no-install-recommends chromium firefox-esr',
    );
  }
}

export function launch(name) {
  if (name === 'firefox') {
    return puppeteer.launch({ browser: 'firefox', executablePath: FIREFOX, headless: true, timeout: START_TIMEOUT_MS });
  }
  return puppeteer.launch({
    browser: 'chrome',
    executablePath: CHROMIUM,
    headless: true,
    timeout: START_TIMEOUT_MS,
    // With the network domain enabled, Chromium copies every binary message to the tests as text.
    networkEnabled: false,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
}
