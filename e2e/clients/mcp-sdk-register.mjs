// A client that registers itself with the TypeScript SDK of MCP, and acts for a
// person. What they are asked to open goes to standard output.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { auth, extractWWWAuthenticateParams } from '@modelcontextprotocol/sdk/client/auth.js'

const { ISSUER, INITIAL_TOKEN, REGISTRATION, API } = process.env

const server = createServer().listen(0, '127.0.0.1')
await once(server, 'listening')

class Provider {
  redirectUrl = `http://127.0.0.1:${server.address().port}/callback`
  clientMetadata = {
    client_name: 'Desk assistant', redirect_uris: [this.redirectUrl], application_type: 'native',
    grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'], token_endpoint_auth_method: 'none',
  }
  kept = {}
  clientInformation = () => this.kept.client
  saveClientInformation = (client) => { this.kept.client = client }
  tokens = () => this.kept.tokens
  saveTokens = (tokens) => { this.kept.tokens = tokens }
  codeVerifier = () => this.kept.verifier
  saveCodeVerifier = (verifier) => { this.kept.verifier = verifier }
  redirectToAuthorization = (url) => console.log('Open', url.href)
}
const provider = new Provider()

// The SDK has no place for an initial access token.
const fetchFn = (url, init = {}) => {
  const headers = new Headers(init.headers)
  if (String(url) === `${ISSUER}/oauth/register`) headers.set('authorization', `Bearer ${INITIAL_TOKEN}`)
  return fetch(url, { ...init, headers })
}

const { resourceMetadataUrl, scope } = extractWWWAuthenticateParams(await fetch(API))
const request = { serverUrl: API, resourceMetadataUrl, scope, fetchFn }
if (REGISTRATION === 'off') {
  await assert.rejects(auth(provider, request), /does not support dynamic client registration/)
} else {
  assert.equal(await auth(provider, request), 'REDIRECT')
  assert.match(provider.kept.client.client_id, /^agt_/)
  assert.equal(provider.kept.client.client_secret, undefined)
  const [back, response] = await once(server, 'request')
  response.end('You may close this window.')
  const { searchParams } = new URL(back.url, provider.redirectUrl)
  assert.equal(searchParams.get('iss'), ISSUER)
  await auth(provider, { ...request, authorizationCode: searchParams.get('code') })
  const answer = await fetch(API, { headers: { authorization: `Bearer ${provider.tokens().access_token}` } })
  assert.equal(answer.status, 200)
}
server.close()
