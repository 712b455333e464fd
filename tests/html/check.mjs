// Opens every page of a built book in headless Chromium and prints what is wrong with it as JSON.
//
//   node check.mjs <html folder> [<screenshot folder>]
//
// Nothing but loopback may be asked for anything: other requests are stopped and reported.
import { createServer } from "node:http";
import { mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import path from "node:path";
import process from "node:process";
import { chromium } from "playwright-core";

const require = createRequire(import.meta.url);
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
const DESKTOP = { width: 1280, height: 900 };
const MOBILE = { width: 390, height: 844 };
// Without most of these, Chromium itself looks for its maker's servers; the last keeps pages from any other host.
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];
const PATIENCE = 180_000; // ms for one step, on a busy machine
const THEME_SETTLES = 400; // ms: the theme makes what scrolls reachable by keyboard 300 ms after a resize
const TYPES = {
  ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
  ".json": "application/json", ".png": "image/png", ".svg": "image/svg+xml", ".jpeg": "image/jpeg",
  ".woff2": "font/woff2", ".ttf": "font/ttf", ".ipynb": "application/json", ".csv": "text/csv",
};

const [root, shots] = process.argv.slice(2);
if (!root || !statSync(root, { throwIfNoEntry: false })?.isDirectory()) {
  console.error(`html check: ${root ?? "(no folder given)"} is not a folder of built pages`);
  process.exit(2);
}

const report = {
  pages: 0, consoleErrors: [], pageErrors: [], externalRequests: [], failedRequests: [],
  brokenLinks: [], accessibility: [], imageText: [], overflow: [],
};

function listPages(folder, prefix = "") {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const name = prefix + entry.name;
    if (entry.isDirectory()) return entry.name.startsWith("_") && entry.name !== "_generated" ? [] : listPages(path.join(folder, entry.name), `${name}/`);
    return entry.name.endsWith(".html") ? [name] : [];
  }).sort();
}

function onDisk(pathname) {
  const file = path.join(root, path.normalize(decodeURIComponent(pathname)));
  const stat = statSync(file, { throwIfNoEntry: false });
  return stat?.isDirectory() ? path.join(file, "index.html") : file;
}

function serve() {
  const server = createServer((request, response) => {
    const file = onDisk(new URL(request.url, "http://loopback").pathname);
    try {
      const body = readFileSync(file);
      response.writeHead(200, { "content-type": TYPES[path.extname(file)] ?? "application/octet-stream" }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

/** Runs axe in the page, and returns one line per violated rule and element. */
async function violations(page, options) {
  const found = await page.evaluate((settings) => window.axe.run(document, settings), {
    ...options, resultTypes: ["violations"],
  });
  return found.violations.flatMap((rule) =>
    rule.nodes.map((node) => ({ rule: rule.id, help: rule.help, target: node.target.join(" "), html: node.html.slice(0, 160) })));
}

/** What the page links to, which anchors it has, and images whose text says nothing. */
function readPage(page) {
  return page.evaluate(() => {
    const links = [...document.querySelectorAll("a[href], area[href], link[href]")].map((a) => a.href);
    const sources = [...document.querySelectorAll("img[src], script[src], source[src]")].map((e) => e.src);
    const ids = [...document.querySelectorAll("[id], a[name]")].flatMap((e) => [e.id, e.getAttribute("name")]).filter(Boolean);
    const fileName = /\.(png|svg|jpe?g|gif)$/i;
    const images = [...document.querySelectorAll("article img")]
      .filter((img) => fileName.test(img.alt) || (img.alt.trim().length < 5 && img.getAttribute("role") !== "presentation"))
      .map((img) => img.getAttribute("src"));
    return { links: [...new Set([...links, ...sources])], ids, images };
  });
}

/** Where a page sends its reader at once; such a page cannot be looked at. */
function redirectOf(name) {
  const text = readFileSync(path.join(root, name), "utf8");
  return /http-equiv="refresh" content="0; url=([^"]+)"/i.exec(text)?.[1];
}

async function checkPage(context, name, origin) {
  const page = await context.newPage();
  const add = (list, entry) => report[list].push({ page: name, ...entry });
  page.on("console", (message) => {
    if (message.type() === "error") add("consoleErrors", { text: message.text(), at: message.location().url });
  });
  page.on("pageerror", (error) => add("pageErrors", { text: String(error) }));
  page.on("response", (response) => {
    if (response.status() >= 400) add("failedRequests", { url: response.url(), status: response.status() });
  });
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(`${origin}/`) && !/^(data|blob):/.test(url)) add("externalRequests", { url });
  });

  await page.emulateMedia({ colorScheme: "light" });
  await page.goto(`${origin}/${name}`, { waitUntil: "load" });
  await page.evaluate(AXE);
  const content = await readPage(page);
  content.images.forEach((src) => add("imageText", { src }));

  const shoot = async (kind) => {
    if (shots) await page.screenshot({ path: path.join(shots, `${name.replaceAll("/", "--").replace(/\.html$/, "")}.${kind}.png`), fullPage: true });
  };
  const axe = async (mode, options) => (await violations(page, options)).forEach((found) => add("accessibility", { mode, ...found }));

  const all = { runOnly: { type: "tag", values: WCAG } };
  await axe("desktop light", all);
  await shoot("desktop");
  await page.emulateMedia({ colorScheme: "dark" });
  await axe("desktop dark", { runOnly: { type: "rule", values: ["color-contrast", "link-in-text-block"] } });
  await shoot("dark");
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(MOBILE);
  await page.waitForTimeout(THEME_SETTLES);
  await axe("mobile light", all);
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (wider > 0) add("overflow", { pixels: wider });
  await shoot("mobile");
  await page.close();
  return content;
}

function checkLinks(contents, origin) {
  for (const [name, content] of contents) {
    for (const link of content.links) {
      const url = new URL(link);
      if (url.origin !== origin) continue;
      const file = onDisk(url.pathname);
      const target = path.relative(root, file).split(path.sep).join("/");
      const anchor = decodeURIComponent(url.hash.slice(1));
      if (!statSync(file, { throwIfNoEntry: false })) {
        report.brokenLinks.push({ page: name, link: url.pathname + url.hash, why: "no such file" });
      } else if (anchor && contents.has(target) && !contents.get(target).ids.includes(anchor)) {
        report.brokenLinks.push({ page: name, link: url.pathname + url.hash, why: "no such anchor" });
      }
    }
  }
}

const server = await serve();
const origin = `http://127.0.0.1:${server.address().port}`;
if (shots) mkdirSync(shots, { recursive: true });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS, timeout: PATIENCE,
});
try {
  const context = await browser.newContext({ viewport: DESKTOP, reducedMotion: "reduce" });
  context.setDefaultTimeout(PATIENCE);
  const contents = new Map();
  const waiting = listPages(root);
  // One page at a time leaves cores idle: each waits for the theme to settle and for pictures to be written.
  await Promise.all(Array.from({ length: availableParallelism() }, async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      const target = redirectOf(name);
      contents.set(name, target ? { links: [new URL(target, `${origin}/${name}`).href], ids: [] } : await checkPage(context, name, origin));
      report.pages += 1;
    }
  }));
  checkLinks(contents, origin);
} finally {
  await browser.close();
  server.close();
}
console.log(JSON.stringify(report, null, 2));
