// What scenarios do with pages.

import assert from 'node:assert/strict';

const MIB = 1024 * 1024;

// Firefox reports lost connections in the same way as errors of the page.
const CONNECTION_LOST = /^Firefox can.t establish a connection|^The connection to ws.* was interrupted/;

/** Opens a page, lets `act` choose files in its file input, and closes it afterwards. */
export async function with_page(stage, url, input, act) {
  const page = await stage.browser.newPage();
  page.setDefaultTimeout(stage.wait_ms);
  const complaints = [];
  page.on('pageerror', (error) => {
    if (!CONNECTION_LOST.test(error.message)) complaints.push(error.message);
  });
  page.on('dialog', async (dialog) => {
    complaints.push(`dialog: ${dialog.message()}`);
    await dialog.dismiss();
  });
  try {
    await page.goto(url);
    // Choosing the same file twice would be no change.
    const choose = async (...chosen) => {
      const element = await page.waitForSelector(input);
      await element.uploadFile(...chosen.map((file) => file.path));
      await element.dispose();
    };
    await act(page, choose);
    assert.deepEqual(complaints, []);
  } finally {
    await page.close();
  }
}

/** A page on which scenarios drive the library themselves, and what they ask it for. */
export async function with_library(stage, files, act) {
  await with_page(stage, `http://${stage.app.host}/plain`, '#files', async (page, choose) => {
    await choose(...files);
    await act({
      page,
      async begin(index, id) {
        await page.evaluate((i, ticket) => begin(i, ticket), index, id);
      },
      tell: (index, method, argument) =>
        page.evaluate((i, name, value) => void uploads[i][name](value), index, method, argument),
      look: (index) => page.evaluate((i) => ({ ...look(i), calls: calls[i] }), index),
      /** Waits until `condition`, an expression about `up`, is true, and looks. */
      async until(index, condition) {
        const body = `const up = uploads[${index}]; return ${condition};`;
        try {
          await page.waitForFunction(new Function(body), { polling: 20 });
        } catch (error) {
          const seen = await page.evaluate((i) => ({ ...look(i), calls: calls[i] }), index);
          throw new Error(`${condition} did not come: ${JSON.stringify(seen)}`, { cause: error });
        }
        return page.evaluate((i) => ({ ...look(i), calls: calls[i] }), index);
      },
    });
  });
}

/** Slow enough that there is a middle. */
export async function slowed(stage, mib_per_second, act) {
  stage.proxy.bytes_per_second = mib_per_second * MIB;
  try {
    await act();
  } finally {
    stage.proxy.bytes_per_second = Infinity;
  }
}

/** The text of an element, when it is what it should be. */
export async function await_text(page, selector, pattern) {
  const matches = (css, source) => new RegExp(source).test(document.querySelector(css)?.textContent || '');
  try {
    await page.waitForFunction(matches, { polling: 20 }, selector, pattern.source);
  } catch (error) {
    const text = await page.evaluate((css) => document.querySelector(css)?.textContent, selector);
    throw new Error(`${selector} is '${text}', not ${pattern}`, { cause: error });
  }
}
