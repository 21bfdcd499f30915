// An agent by itself that uses an MCP server behind the gateway, with the SDK.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { ClientCredentialsProvider, PrivateKeyJwtProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { found, issued, use, went } from './use.mjs'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, CLIENT_KEY, MCP_URL } = process.env

const bySecret = () => new ClientCredentialsProvider({
  clientId: CLIENT_ID, clientSecret: CLIENT_SECRET, expectedIssuer: ISSUER,
})
const byKey = async () => new PrivateKeyJwtProvider({
  clientId: CLIENT_ID, privateKey: JSON.parse(await readFile(CLIENT_KEY, 'utf8')), algorithm: 'ES256', expectedIssuer: ISSUER,
})

const authProvider = await { secret: bySecret, key: byKey }[process.argv[2]]()
const transport = new StreamableHTTPClientTransport(new URL(MCP_URL), { authProvider })
const client = new Client({ name: 'nightly', version: '1' }, { capabilities: { elicitation: {} } })
await client.connect(transport)
const { tools } = await client.listTools()

// The agent was told neither the issuer's endpoints nor the resource.
went(...found, 'POST /oauth/token 200', 'POST /u/customers/mcp 200', 'POST /u/customers/mcp 200')
assert.equal(issued(authProvider.tokens()).sub, `agent:${CLIENT_ID}`)
assert.equal(authProvider.tokens().refresh_token, undefined)
await use(client, tools)

await transport.terminateSession()
await client.close()
