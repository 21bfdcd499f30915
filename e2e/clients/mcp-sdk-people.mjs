// An agent that people let act for them, with the TypeScript SDK of MCP. What
// they are asked to open goes to standard output.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { auth, extractWWWAuthenticateParams } from '@modelcontextprotocol/sdk/client/auth.js'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, API } = process.env

const server = createServer().listen(0, '127.0.0.1')
await once(server, 'listening')

// A provider keeps in memory what an agent would keep for longer.
class Provider {
  redirectUrl = `http://127.0.0.1:${server.address().port}/callback`
  clientMetadata = { redirect_uris: [this.redirectUrl] }
  kept = {}
  clientInformation = () => ({ client_id: CLIENT_ID, client_secret: CLIENT_SECRET })
  state = () => (this.kept.state = crypto.randomUUID())
  tokens = () => this.kept.tokens
  saveTokens = (tokens) => { this.kept.tokens = tokens }
  codeVerifier = () => this.kept.verifier
  saveCodeVerifier = (verifier) => { this.kept.verifier = verifier }
  redirectToAuthorization = (url) => console.log('Open', url.href)
}
const provider = new Provider()

const { resourceMetadataUrl, scope } = extractWWWAuthenticateParams(await fetch(API))
const request = { serverUrl: API, resourceMetadataUrl, scope }
const result = await auth(provider, request)
assert.equal(result, 'REDIRECT')
const [back, response] = await once(server, 'request')
response.end('You may close this window.')
const { searchParams } = new URL(back.url, provider.redirectUrl)
assert.equal(searchParams.get('state'), provider.kept.state)
assert.equal(searchParams.get('iss'), ISSUER)
await auth(provider, { ...request, authorizationCode: searchParams.get('code') })

const call = async () => (await fetch(API, { headers: { authorization: `Bearer ${provider.tokens().access_token}` } })).status
assert.equal(await call(), 200)

// With a refresh token among what is kept, it is refreshed.
const old = provider.tokens()
assert.equal(await auth(provider, request), 'AUTHORIZED')
assert.notEqual(provider.tokens().refresh_token, old.refresh_token)
assert.equal(await call(), 200)
server.close()
