// An agent that a person lets do one task, with oauth4webapi (RFC 9396). What the
// person is asked to open goes to standard output.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import * as oauth from 'oauth4webapi'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, RESOURCE, API } = process.env

const issuer = new URL(ISSUER)
const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer))
assert.ok(as.authorization_details_types_supported.includes('estover_task'))
const client = { client_id: CLIENT_ID }
const auth = oauth.ClientSecretBasic(CLIENT_SECRET)

const server = createServer().listen(0, '127.0.0.1')
await once(server, 'listening')
const redirect = `http://127.0.0.1:${server.address().port}/callback`

async function back() {
  const [request, response] = await once(server, 'request')
  response.end('You may close this window.')
  return new URL(request.url, redirect)
}

async function pushed(parameters, verifier, state) {
  const response = await oauth.pushedAuthorizationRequest(as, client, auth, {
    response_type: 'code', redirect_uri: redirect, state, ...parameters,
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
  })
  return oauth.processPushedAuthorizationResponse(as, client, response)
}

async function code(parameters) {
  const verifier = oauth.generateRandomCodeVerifier()
  const state = oauth.generateRandomState()
  const { request_uri } = await pushed(parameters, verifier, state)
  const url = new URL(as.authorization_endpoint)
  url.searchParams.set('client_id', CLIENT_ID)
  url.searchParams.set('request_uri', request_uri)
  console.log('Open', url.href)
  const answer = oauth.validateAuthResponse(as, client, await back(), state)
  const response = await oauth.authorizationCodeGrantRequest(as, client, auth, answer, redirect, verifier)
  return oauth.processAuthorizationCodeResponse(as, client, response)
}

async function refresh(token, details) {
  const additionalParameters = { authorization_details: JSON.stringify(details) }
  const response = await oauth.refreshTokenGrantRequest(as, client, auth, token, { additionalParameters })
  return oauth.processRefreshTokenResponse(as, client, response)
}

const call = async (token, url) => {
  const response = await fetch(url, { headers: { Authorization: `Bearer ${token.access_token}` } })
  return [response.status, (await response.json()).code]
}
const list = new URL('.', API).href.replace(/\/$/, '')
const other = `${list}/cus_1002`

const task = { type: 'estover_task', locations: [RESOURCE], actions: ['customer.list', 'customer.read'] }
const token = await code({ authorization_details: JSON.stringify([task]) })
assert.deepEqual(token.authorization_details, [task])
for (const url of [API, other, list]) assert.equal((await call(token, url))[0], 200, url)

const less = { ...task, actions: ['customer.read'], parameters: { id: ['cus_1001'] } }
const narrow = await refresh(token.refresh_token, [less])
assert.deepEqual(narrow.authorization_details, [less])
assert.equal((await call(narrow, API))[0], 200)
assert.deepEqual(await call(narrow, other), [403, 'kernel_task'])
assert.equal((await call(narrow, list))[0], 403)

// Nothing widens, and what is not in order is refused where it is pushed.
const refused = (ask) => assert.rejects(ask, (error) => error.error === 'invalid_authorization_details')
await refused(refresh(narrow.refresh_token, [{ ...task, actions: [...task.actions, 'note.add'] }]))
await refused(refresh(narrow.refresh_token, []))
for (const details of [[{ type: 'unknown' }], [{ ...task, max_calls: 3 }], [{ ...task, actions: ['customer.delete'] }]]) {
  await refused(pushed({ authorization_details: JSON.stringify(details) }, oauth.generateRandomCodeVerifier(), 'x'))
}

server.close()
