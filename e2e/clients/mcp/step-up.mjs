// An agent that a person lets use one MCP server behind the gateway, and then a
// second one of the same resource, with the SDK: what its token lacks it finds out
// from the refusal. What the person is asked to open goes to standard output.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, MCP_URL, REFRESHES } = process.env

const server = createServer().listen(0, '127.0.0.1')
await once(server, 'listening')
const redirect = `http://127.0.0.1:${server.address().port}/callback`

const kept = {}
let sent = 0 // how often the person was sent away
const authProvider = {
  redirectUrl: redirect,
  clientMetadata: { client_name: 'careful', redirect_uris: [redirect] },
  clientInformation: () => ({ client_id: CLIENT_ID, client_secret: CLIENT_SECRET, issuer: ISSUER }),
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens },
  state: () => (kept.state = randomUUID()),
  saveCodeVerifier: (verifier) => { kept.verifier = verifier },
  codeVerifier: () => kept.verifier,
  redirectToAuthorization: (url) => { sent++; console.log('Open', url.href) },
}
const scope = () => JSON.parse(Buffer.from(kept.tokens.access_token.split('.')[1], 'base64url').toString()).scope

// again does something once more when the person has come back.
async function again(transport, act) {
  try {
    return await act()
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error
    const [request, response] = await once(server, 'request')
    response.end('You may close this window.')
    const answer = new URL(request.url, redirect).searchParams
    assert.equal(answer.get('state'), kept.state)
    await transport.finishAuth(answer.get('code'))
    return act()
  }
}

async function connect(url) {
  let client, transport
  const open = () => {
    client = new Client({ name: 'careful', version: '1' })
    transport = new StreamableHTTPClientTransport(new URL(url), { authProvider })
    return client.connect(transport)
  }
  await again({ finishAuth: (code) => transport.finishAuth(code) }, open)
  return { client, transport }
}
async function read({ client, transport }) {
  const { content } = await again(transport, () => client.callTool({ name: 'customer_read', arguments: { id: 'cus_1001' } }))
  assert.equal(content[0].text, 'Ada Lindqvist')
}

const first = await connect(MCP_URL)
await read(first)
assert.equal(scope(), 'customers.use')

if (REFRESHES) {
  // With a refresh token the SDK refreshes, which widens nothing, and gives up.
  await assert.rejects(connect(`${MCP_URL}/archive`), /403 after trying upscoping/)
  assert.equal(scope(), 'customers.use')
  delete kept.tokens // so that the person is asked
}

// What the second one wants is in its refusal, and nothing else is asked for.
const second = await connect(`${MCP_URL}/archive`)
await read(second)
assert.equal(scope(), 'archive.use')
assert.equal(sent, 2)

// So it is on the way back, and the person is not asked again for what they have
// agreed to.
if (!REFRESHES) {
  await read(first)
  assert.equal(scope(), 'customers.use')
}

await first.client.close()
await second.client.close()
server.close()
