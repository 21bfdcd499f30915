// An agent that people let act for them and sign in to, with openid-client. What
// people are asked to open or to type goes to standard output.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import * as client from 'openid-client'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, RESOURCE, API, PERSON } = process.env

const config = await client.discovery(new URL(ISSUER), CLIENT_ID, CLIENT_SECRET)
client.enableNonRepudiationChecks(config) // signatures of ID tokens are checked too

const server = createServer().listen(0, '127.0.0.1')
await once(server, 'listening')
const redirect = `http://127.0.0.1:${server.address().port}/callback`

async function code(parameters) {
  const verifier = client.randomPKCECodeVerifier()
  const state = client.randomState()
  const nonce = client.randomNonce()
  const url = await client.buildAuthorizationUrlWithPAR(config, {
    redirect_uri: redirect, state, nonce, ...parameters,
    code_challenge: await client.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
  })
  console.log('Open', url.href)
  const [request, response] = await once(server, 'request')
  response.end('You may close this window.')
  return client.authorizationCodeGrant(config, new URL(request.url, redirect), {
    pkceCodeVerifier: verifier, expectedState: state, expectedNonce: nonce, idTokenExpected: true,
  })
}

// A person signs in and lets the agent act.
const token = await code({ scope: 'openid customer.read', resource: RESOURCE })
assert.match(token.claims().sub, /^user:usr_/)
assert.equal((await client.fetchProtectedResource(config, token.access_token, new URL(API), 'GET')).status, 200)
const fresh = await client.refreshTokenGrant(config, token.refresh_token)
assert.equal(fresh.claims().sub, token.claims().sub)
assert.equal((await client.fetchProtectedResource(config, fresh.access_token, new URL(API), 'GET')).status, 200)

// What they signed in with is exchanged for less.
const taken = await client.genericGrantRequest(config, 'urn:ietf:params:oauth:grant-type:token-exchange', {
  subject_token: token.id_token, subject_token_type: 'urn:ietf:params:oauth:token-type:id_token', resource: RESOURCE, scope: 'customer.read',
})
assert.equal(taken.issued_token_type, 'urn:ietf:params:oauth:token-type:access_token')
assert.equal((await client.fetchProtectedResource(config, taken.access_token, new URL(API), 'GET')).status, 200)

// A person signs in, and the agent asks who it is.
const signed = await code({ scope: 'openid email' })
const info = await client.fetchUserInfo(config, signed.access_token, signed.claims().sub)
assert.equal(info.email, `${PERSON}@example.com`)

// A person types a code.
const device = await client.initiateDeviceAuthorization(config, { resource: RESOURCE, scope: 'customer.read' })
console.log('Type', device.user_code)
const typed = client.pollDeviceAuthorizationGrant(config, device)

// A person whom the agent names finds what waits for them.
const asked = await client.initiateBackchannelAuthentication(config, {
  scope: 'openid customer.read', resource: RESOURCE, login_hint: PERSON, binding_message: 'Report for March, 6 of 7',
})
console.log('Decide', 'Report for March, 6 of 7')
const named = client.pollBackchannelAuthenticationGrant(config, asked)

for (const { access_token } of await Promise.all([typed, named])) {
  assert.equal((await client.fetchProtectedResource(config, access_token, new URL(API), 'GET')).status, 200)
}
assert.match((await named).claims().sub, /^user:usr_/)

server.close()
process.stdin.destroy()
