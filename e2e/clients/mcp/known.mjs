// An agent that is known by the URL of its document, which a person lets use an
// MCP server behind the gateway, with the SDK. What the person is asked to open
// goes to standard output.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { call, issued } from './use.mjs'

const { ISSUER, CLIENT_ID, MCP_URL } = process.env

const server = createServer().listen(0, '127.0.0.1')
await once(server, 'listening')
const redirect = `http://127.0.0.1:${server.address().port}/callback`

const kept = {}
const authProvider = {
  redirectUrl: redirect,
  clientMetadataUrl: CLIENT_ID,
  clientMetadata: { client_name: 'desk', redirect_uris: [redirect] },
  clientInformation: () => kept.client,
  saveClientInformation: (client) => { kept.client = client },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens },
  state: () => (kept.state = randomUUID()),
  saveCodeVerifier: (verifier) => { kept.verifier = verifier },
  codeVerifier: () => kept.verifier,
  redirectToAuthorization: (url) => { console.log('Open', url.href) },
}

async function connect() {
  const client = new Client({ name: 'desk', version: '1' }, { capabilities: { elicitation: {} } })
  const transport = new StreamableHTTPClientTransport(new URL(MCP_URL), { authProvider })
  try {
    await client.connect(transport)
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error
    const [request, response] = await once(server, 'request')
    response.end('You may close this window.')
    const answer = new URL(request.url, redirect).searchParams
    assert.equal(answer.get('state'), kept.state)
    assert.equal(answer.get('iss'), ISSUER)
    await transport.finishAuth(answer.get('code'))
    return connect()
  }
  return client
}
const client = await connect()
assert.equal(kept.client.client_id, CLIENT_ID)
const first = issued(kept.tokens)
assert.equal(first.client_id, CLIENT_ID)
assert.match(first.client_agent, /^agt_/)
assert.equal(first.act.sub, `agent:${first.client_agent}`)
assert.equal(await call(client, 'customer_read', { id: 'cus_1001' }), 'Ada Lindqvist')

// With an access token at its end, the SDK refreshes under the same URL.
const body = new URLSearchParams({ token: kept.tokens.access_token, client_id: CLIENT_ID })
assert.equal((await fetch(`${ISSUER}/oauth/revoke`, { method: 'POST', body })).status, 200)
assert.equal(await call(client, 'customer_read', { id: 'cus_1001' }), 'Ada Lindqvist')
assert.notEqual(issued(kept.tokens).jti, first.jti)

await client.transport.terminateSession()
await client.close()
server.close()
