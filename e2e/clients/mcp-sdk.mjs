// An agent by itself, with the TypeScript SDK of MCP. It is told nothing but
// the URL that it calls, and finds the rest.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { auth, extractWWWAuthenticateParams } from '@modelcontextprotocol/sdk/client/auth.js'
import { ClientCredentialsProvider, PrivateKeyJwtProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, CERTIFICATE_KEY, API } = process.env

const bySecret = (scope) => new ClientCredentialsProvider({ clientId: CLIENT_ID, clientSecret: CLIENT_SECRET, expectedIssuer: ISSUER, scope })
const privateKey = await readFile(CERTIFICATE_KEY, 'utf8')
const byKey = (scope) => new PrivateKeyJwtProvider({ clientId: CLIENT_ID, privateKey, algorithm: 'ES256', expectedIssuer: ISSUER, scope })

async function token(provide) {
  const refused = await fetch(API)
  const { resourceMetadataUrl, scope } = extractWWWAuthenticateParams(refused)
  const provider = provide(scope)
  await auth(provider, { serverUrl: API, resourceMetadataUrl })
  return provider.tokens()
}

for (const provide of [bySecret, byKey]) {
  const { access_token, scope } = await token(provide)
  assert.equal(scope, 'customer.read')
  const answer = await fetch(API, { headers: { authorization: `Bearer ${access_token}` } })
  assert.equal(answer.status, 200)
}
