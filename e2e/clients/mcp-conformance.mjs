// The checks of MCP's conformance suite that are for authorization servers. What
// a person is asked to open goes to standard output.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const { ISSUER, CLIENT_ID, RESOURCE } = process.env

// A port on which the suite may wait for the browser. It is none that the system gives
// to others of itself, so that it is still free a moment later.
async function freePort () {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 8_000)
    const probe = createServer().listen(port, '127.0.0.1')
    const free = await Promise.race([once(probe, 'listening').then(() => true), once(probe, 'error').then(() => false)])
    if (!free) continue
    probe.close()
    await once(probe, 'close')
    return port
  }
}
const port = await freePort()

const results = await mkdtemp(join(process.env.HOME, 'conformance-'))
const suite = spawn(process.execPath, [
  'node_modules/@modelcontextprotocol/conformance/dist/index.js', 'authorization',
  '--url', ISSUER, '--client-id', CLIENT_ID, '--resource', RESOURCE, '--port', port, '--output-dir', results,
], { stdio: ['ignore', 'pipe', 'inherit'] })
const ended = once(suite, 'close')
for await (const line of createInterface(suite.stdout)) {
  if (line.startsWith(`${ISSUER}/oauth/authorize`)) console.log('Open', line)
  else console.error(line)
}
const [code] = await ended
assert.equal(code, 0)

const checks = []
for (const file of await readdir(results, { recursive: true })) {
  if (file.endsWith('checks.json')) checks.push(...JSON.parse(await readFile(join(results, file), 'utf8')))
}
const found = Object.fromEntries(checks.map((check) => [check.id, check.status]))
for (const id of ['authorization-server-metadata', 'authorization-server-metadata-cimd', 'authorization-code-grant']) {
  assert.equal(found[id], 'SUCCESS', JSON.stringify(checks, null, 2))
}
assert.ok(checks.every((check) => check.status === 'SUCCESS'), JSON.stringify(checks, null, 2))
