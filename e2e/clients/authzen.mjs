// A client of the AuthZEN Authorization API: it asks whether it may, asks for what
// it may not, waits until a person has decided, and asks again.
import assert from 'node:assert/strict'
import { setTimeout as pause } from 'node:timers/promises'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, RESOURCE, API } = process.env

async function token(parameters = {}) {
  const response = await fetch(`${ISSUER}/oauth/token`, {
    method: 'POST',
    headers: { authorization: `Basic ${btoa(`${CLIENT_ID}:${CLIENT_SECRET}`)}` },
    body: new URLSearchParams({ grant_type: 'client_credentials', ...parameters }),
  })
  assert.equal(response.status, 200)
  return (await response.json()).access_token
}

const headers = { authorization: `Bearer ${await token()}`, 'content-type': 'application/json' }
const at = await (await fetch(`${ISSUER}/.well-known/authzen-configuration`)).json()
assert.equal(at.policy_decision_point, ISSUER)

async function post(url, body, more = {}) {
  const response = await fetch(url, { method: 'POST', headers: { ...headers, ...more }, body: JSON.stringify(body) })
  return { status: response.status, body: await response.json() }
}

// May I read this customer?
const question = {
  subject: { type: 'agent', id: CLIENT_ID },
  action: { name: 'customer.read', properties: { id: 'cus_1001' } },
  resource: { type: 'http', id: 'crm' },
}
const refusal = await post(at.access_evaluation_endpoint, question)
assert.equal(refusal.status, 200)
assert.equal(refusal.body.decision, false)
const { evaluation_id, reason, access_request } = refusal.body.context

// No, but it can be asked for.
assert.equal(new URL(access_request.endpoint).origin, new URL(ISSUER).origin)
const request = {
  ...question,
  context: { reason: 'The customer is on the phone', ticket: 'T-4711' },
  requested_access: { requested_until: new Date(Date.now() + 15 * 60_000).toISOString() },
  denial: { evaluation_id, reason, expires_at: access_request.expires_at, binding_token: access_request.binding_token },
}
const asked = await post(access_request.endpoint, request, { 'idempotency-key': evaluation_id })
assert.equal(asked.status, 202)
let { task, result } = asked.body
console.log(`waiting for ${task.id}`)

// What was refused is what can be asked for, and nothing else.
const other = await post(access_request.endpoint, { ...request, action: { name: 'customer.delete' } })
assert.equal(other.body.type, 'urn:openid:authzen:access-request:error:invalid_denial_binding')

while (task.status === 'pending') {
  await pause(200)
  const response = await fetch(task.status_endpoint, { headers })
  assert.equal(response.status, 200)
  ;({ task, result } = await response.json())
}
console.log(task.status)
if (task.status !== 'approved') process.exit(0)

// An approval is an input: policy decides again.
assert.equal(result.mode, 'reevaluate')
const again = await post(at.access_evaluation_endpoint, { ...question, context: { approval: result.approval } })
assert.equal(again.body.decision, true)
assert.equal(again.body.context.approval.id, result.approval.id)
const elsewhere = { ...question, action: { name: 'customer.read', properties: { id: 'cus_1002' } }, context: { approval: result.approval } }
assert.equal((await post(at.access_evaluation_endpoint, elsewhere)).body.decision, false)

// And the gateway says the same.
const call = await fetch(API, { headers: { authorization: `Bearer ${await token({ resource: RESOURCE, scope: 'customer.read' })}` } })
console.log(call.status)
