// An agent that people let act for them and sign in to, with oauth4webapi. What
// people are asked to open or to type goes to standard output.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import * as oauth from 'oauth4webapi'

const { ISSUER, CLIENT_ID, CLIENT_KEY, RESOURCE, API, PERSON } = process.env

const issuer = new URL(ISSUER)
const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer))
const client = { client_id: CLIENT_ID }

// By its key; an agent that has nothing to authenticate with says who it is.
async function authentication() {
  if (!CLIENT_KEY) return oauth.None()
  const jwk = JSON.parse(await readFile(CLIENT_KEY, 'utf8'))
  const key = await crypto.subtle.importKey('jwk', jwk, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign'])
  return oauth.PrivateKeyJwt({ key, kid: jwk.kid })
}
const auth = await authentication()

// The agent listens on a port of its own for the browser that comes back.
const server = createServer().listen(0, '127.0.0.1')
await once(server, 'listening')
const redirect = `http://127.0.0.1:${server.address().port}/callback`

async function back() {
  const [request, response] = await once(server, 'request')
  response.end('You may close this window.')
  return new URL(request.url, redirect)
}

const again = async (ask) => {
  try {
    return await ask()
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error
    return await ask()
  }
}

// A person is asked, by a request that is pushed and bound to a key.
async function code(parameters, options) {
  const verifier = oauth.generateRandomCodeVerifier()
  const state = oauth.generateRandomState()
  const pushed = await again(async () => {
    const response = await oauth.pushedAuthorizationRequest(as, client, auth, {
      response_type: 'code', redirect_uri: redirect, state, ...parameters,
      code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
    }, options)
    return oauth.processPushedAuthorizationResponse(as, client, response)
  })
  const url = new URL(as.authorization_endpoint)
  url.searchParams.set('client_id', CLIENT_ID)
  url.searchParams.set('request_uri', pushed.request_uri)
  console.log('Open', url.href)
  const answer = oauth.validateAuthResponse(as, client, await back(), state) // and iss
  return again(async () => {
    const response = await oauth.authorizationCodeGrantRequest(as, client, auth, answer, redirect, verifier, options)
    const expectations = parameters.nonce ? { expectedNonce: parameters.nonce, requireIdToken: true } : undefined
    const token = await oauth.processAuthorizationCodeResponse(as, client, response, expectations)
    if (parameters.nonce) await oauth.validateApplicationLevelSignature(as, response)
    return token
  })
}

const DPoP = oauth.DPoP(client, await oauth.generateKeyPair('ES256'))
const call = (token) => again(() => oauth.protectedResourceRequest(token, 'GET', new URL(API), undefined, undefined, { DPoP }))

const first = await code({ resource: RESOURCE, scope: 'customer.read' }, { DPoP })
assert.equal(first.token_type, 'dpop')
assert.equal((await call(first.access_token)).status, 200)

const refresh = (token) => again(async () => {
  const response = await oauth.refreshTokenGrantRequest(as, client, auth, token, { DPoP })
  return oauth.processRefreshTokenResponse(as, client, response)
})
const second = await refresh(first.refresh_token)
assert.notEqual(second.refresh_token, first.refresh_token)
assert.equal((await call(second.access_token)).status, 200)

await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, auth, second.refresh_token))
await assert.rejects(refresh(second.refresh_token), (error) => error.error === 'invalid_grant')
await assert.rejects(call(second.access_token), (error) => error.status === 401)

// A person signs in.
const signed = await code({ scope: 'openid email', nonce: oauth.generateRandomNonce() })
const claims = oauth.getValidatedIdTokenClaims(signed)
const info = await oauth.processUserInfoResponse(as, client, claims.sub, await oauth.userInfoRequest(as, client, signed.access_token))
assert.equal(info.email, `${PERSON}@example.com`)

// A person types a code, for an agent that has no browser.
const device = await oauth.processDeviceAuthorizationResponse(as, client,
  await oauth.deviceAuthorizationRequest(as, client, auth, { resource: RESOURCE, scope: 'customer.read' }))
const poll = () => again(async () => {
  const response = await oauth.deviceCodeGrantRequest(as, client, auth, device.device_code, { DPoP })
  return oauth.processDeviceCodeResponse(as, client, response)
})
await assert.rejects(poll(), (error) => error.error === 'authorization_pending')
console.log('Type', device.user_code)
await once(process.stdin, 'data')

// A person whom the agent names finds what waits for them.
async function named() {
  const asked = await oauth.processBackchannelAuthenticationResponse(as, client,
    await oauth.backchannelAuthenticationRequest(as, client, auth, {
      scope: 'openid customer.read', resource: RESOURCE, login_hint: PERSON, binding_message: 'Report for March, 5 of 7',
    }))
  const ask = () => again(async () => {
    const response = await oauth.backchannelAuthenticationGrantRequest(as, client, auth, asked.auth_req_id, { DPoP })
    return oauth.processBackchannelAuthenticationGrantResponse(as, client, response)
  })
  await assert.rejects(ask(), (error) => error.error === 'authorization_pending')
  console.log('Decide', 'Report for March, 5 of 7')
  await once(process.stdin, 'data')
  return ask
}
const ask = CLIENT_KEY ? await named() : undefined // only who authenticates may name people

await new Promise((resolve) => setTimeout(resolve, device.interval * 1000))
assert.equal((await call((await poll()).access_token)).status, 200)
if (ask) {
  const token = await ask()
  assert.match(oauth.getValidatedIdTokenClaims(token).sub, /^user:usr_/)
  assert.equal((await call(token.access_token)).status, 200)
}

server.close()
process.stdin.destroy()
