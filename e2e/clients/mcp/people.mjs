// An agent that a person lets use an MCP server behind the gateway, with the
// SDK. What the person is asked to open goes to standard output.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { call, found, issued, use, went } from './use.mjs'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, MCP_URL } = process.env

// The agent listens on a port of its own for the browser that comes back.
const server = createServer().listen(0, '127.0.0.1')
await once(server, 'listening')
const redirect = `http://127.0.0.1:${server.address().port}/callback`

class Provider {
  #kept = {}
  #client = { client_id: CLIENT_ID, client_secret: CLIENT_SECRET || undefined, issuer: ISSUER }
  redirectUrl = redirect
  clientMetadata = { client_name: 'assistant', redirect_uris: [redirect] }
  clientInformation = () => this.#client
  tokens = () => this.#kept.tokens
  saveTokens = (tokens) => { this.#kept.tokens = tokens }
  invalidateCredentials = (what) => { if (what === 'tokens') delete this.#kept.tokens }
  state = () => (this.#kept.state = randomUUID())
  saveCodeVerifier = (verifier) => { this.#kept.verifier = verifier }
  codeVerifier = () => this.#kept.verifier
  redirectToAuthorization = (url) => { console.log('Open', url.href) }

  // The code with which the browser comes back.
  async code() {
    const [request, response] = await once(server, 'request')
    response.end('You may close this window.')
    const answer = new URL(request.url, redirect).searchParams
    if (answer.get('state') !== this.#kept.state || answer.get('iss') !== ISSUER) throw new Error('That is no answer to this agent.')
    if (!answer.has('code')) throw new Error(answer.get('error'))
    return answer.get('code')
  }
}

const authProvider = new Provider()
async function connect() {
  const client = new Client({ name: 'assistant', version: '1' }, { capabilities: { elicitation: {} } })
  const transport = new StreamableHTTPClientTransport(new URL(MCP_URL), { authProvider })
  try {
    await client.connect(transport)
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error
    await transport.finishAuth(await authProvider.code())
    return connect()
  }
  return client
}
let client = await connect()
const { tools } = await client.listTools()

went(...found, ...found.slice(1), 'POST /oauth/token 200', 'POST /u/customers/mcp 200', 'POST /u/customers/mcp 200')
const first = authProvider.tokens()
assert.match(issued(first).sub, /^user:usr_/)
await use(client, tools)
went('POST /u/customers/mcp 200', 'POST /u/customers/mcp 200', 'POST /u/customers/mcp 200')

// ended is a token that has come to its end before its time.
const ended = async (token) => {
  const body = new URLSearchParams({ token, client_id: CLIENT_ID, ...CLIENT_SECRET && { client_secret: CLIENT_SECRET } })
  assert.equal((await fetch(`${ISSUER}/oauth/revoke`, { method: 'POST', body })).status, 200)
}

// With an access token at its end, the SDK refreshes: nobody is asked.
await ended(first.access_token)
assert.equal(await call(client, 'customer_read', { id: 'cus_1001' }), 'Ada Lindqvist')
went('POST /oauth/revoke 200', ...found, 'POST /oauth/token 200', 'POST /u/customers/mcp 200')
const second = authProvider.tokens()
assert.equal(issued(second).sub, issued(first).sub)
assert.notEqual(second.refresh_token, first.refresh_token)

// With the refresh token at its end, the person is sent again.
await client.close()
await ended(second.refresh_token)
client = await connect()
went('POST /oauth/revoke 200', ...found, 'POST /oauth/token 400', ...found.slice(1), ...found.slice(1), 'POST /oauth/token 200', 'POST /u/customers/mcp 200')
assert.equal(await call(client, 'customer_read', { id: 'cus_1001' }), 'Ada Lindqvist')

await client.transport.terminateSession()
await client.close()
server.close()
