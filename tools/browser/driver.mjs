// A browser that does what it is told, one command a line of JSON on standard
// input, one answer a line of JSON on standard output. Its pages are looked at as
// people and their aids see them: by role and name.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { AxeBuilder } from "@axe-core/playwright";

const [executablePath, spki] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  timeout: 90000,
  args: [`--ignore-certificate-errors-spki-list=${spki}`, ...(process.getuid() === 0 ? ["--no-sandbox"] : [])],
});
const context = await browser.newContext();
const page = await context.newPage();
page.setDefaultTimeout(60000); // other tests are at work on the same machine
const complaints = [];
page.on("console", (m) => m.type() === "error" && complaints.push(m.text()));
page.on("pageerror", (e) => complaints.push(String(e)));

const commands = {
  // A passkey that looks who uses it, without a person to look at.
  authenticator: async () => {
    const cdp = await context.newCDPSession(page);
    await cdp.send("WebAuthn.enable");
    await cdp.send("WebAuthn.addVirtualAuthenticator", {
      options: { protocol: "ctap2", transport: "internal", hasResidentKey: true, hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true },
    });
  },
  goto: async ({ url }) => { await page.goto(url); },
  fill: async ({ label, value }) => { await page.getByLabel(label).fill(value); },
  click: async ({ role, name }) => { await page.getByRole(role, { name, exact: true }).click(); },
  key: async ({ value }) => { await page.keyboard.press(value); },
  wait: async ({ url }) => { await page.waitForURL((u) => u.href.startsWith(url)); },
  heading: async ({ name }) => { await page.getByRole("heading", { name, exact: true, level: 1 }).waitFor(); },
  value: async ({ label }) => page.getByLabel(label).inputValue(),
  text: async () => page.locator("main").innerText(),
  url: async () => page.url(),
  cookies: async () => (await context.cookies()).map((c) => `${c.name} ${c.secure} ${c.httpOnly} ${c.sameSite} ${c.path}`),
  clear: async () => { await context.clearCookies(); },
  phone: async () => { await page.setViewportSize({ width: 360, height: 740 }); },
  scheme: async ({ value }) => { await page.emulateMedia({ colorScheme: value }); },
  screenshot: async ({ value }) => { await page.screenshot({ path: value, fullPage: true }); },
  accessibility: async ({ rule }) => {
    const axe = new AxeBuilder({ page });
    if (rule) axe.withRules(rule);
    else axe.withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]);
    const found = await axe.analyze();
    return found.violations.map((v) => `${v.id}: ${v.help} (${v.nodes.map((n) => n.target).join(", ")})`);
  },
  complaints: async () => complaints,
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    console.log(JSON.stringify({ ok: (await commands[command.do](command)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: `${error}\nat ${page.url()}\n${await page.locator("body").innerText().catch(() => "")}` }));
  }
}
await browser.close();
