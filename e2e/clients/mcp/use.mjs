// What all agents do with the MCP server, and what went over the wire.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { ElicitRequestSchema, ToolListChangedNotificationSchema } from '@modelcontextprotocol/sdk/types.js'

const { ISSUER, CLIENT_ID, RESOURCE } = process.env

// The stream on which the server may speak first.
const stream = 'GET /u/customers/mcp 200'

// Each request and the status that came, without what only this run has.
const requests = []
const arrivals = new EventTarget()
const listening = once(arrivals, 'stream')
const real = globalThis.fetch
globalThis.fetch = async (url, init) => {
  const response = await real(url, init)
  const path = new URL(url).href.replace(ISSUER, '').replace(new URL(ISSUER).origin, '')
  requests.push(`${init?.method ?? 'GET'} ${path} ${response.status}`)
  if (requests.at(-1) === stream) arrivals.dispatchEvent(new Event('stream'))
  return response
}

// went compares the requests so far, and forgets them. The stream, and what is
// sent for the server to keep, come when they like.
export function went(...want) {
  const other = [stream, 'POST /u/customers/mcp 202']
  assert.deepEqual(requests.splice(0).filter((request) => !other.includes(request)), want)
}

// found is how an agent that is refused finds out where tokens come from.
export const found = [
  'POST /u/customers/mcp 401', 'GET /.well-known/oauth-protected-resource/u/customers/mcp 200',
  `GET /.well-known/oauth-authorization-server${new URL(ISSUER).pathname.replace(/\/$/, '')} 200`,
]

export const call = async (client, name, args) => {
  const { content, isError } = await client.callTool({ name, arguments: args })
  assert.ok(!isError, content[0].text)
  return content[0].text
}

export async function use(client, tools) {
  assert.deepEqual(tools.map((tool) => tool.name).sort(), ['customer_close', 'customer_read', 'debug'])
  assert.equal(await call(client, 'customer_read', { id: 'cus_1001' }), 'Ada Lindqvist')

  // The server asks while it answers, and says by itself that something is new.
  await listening
  const changed = new Promise((resolve) => client.setNotificationHandler(ToolListChangedNotificationSchema, resolve))
  let question
  client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
    question = params.message
    return { action: 'accept', content: {} }
  })
  assert.equal(await call(client, 'customer_close', { id: 'cus_1001' }), 'ended')
  assert.equal(question, 'End the contract?')
  await changed

  // The server gives away the key with which it was called, and that is covered.
  const { authorization, ...others } = JSON.parse(await call(client, 'debug', {}))
  assert.match(authorization, /^Bearer \*+$/)
  assert.ok(!/eyJ|est_/.test(JSON.stringify(others)), JSON.stringify(others))
}

// issued is a token as it should be: for the resource and nothing else, sent by
// Bearer.
export function issued(tokens) {
  assert.equal(tokens.token_type.toLowerCase(), 'bearer')
  assert.equal(tokens.issuer, ISSUER)
  const claims = JSON.parse(Buffer.from(tokens.access_token.split('.')[1], 'base64url').toString())
  assert.equal(claims.aud, RESOURCE)
  assert.equal(claims.client_id, CLIENT_ID)
  assert.equal(claims.scope, 'customers.use')
  return claims
}
