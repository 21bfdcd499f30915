// An MCP server that knows nothing of Estover, with the SDK. Where it listens
// goes to standard output.
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { Server } from '@modelcontextprotocol/sdk/server/index.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import { CallToolRequestSchema, ListToolsRequestSchema } from '@modelcontextprotocol/sdk/types.js'

const inputSchema = { type: 'object', properties: { id: { type: 'string' } } }
const tools = [
  { name: 'customer_read', description: 'Who a customer is.', inputSchema },
  { name: 'customer_close', description: 'Ends a contract.', inputSchema },
  { name: 'debug', description: 'How it was called.', inputSchema },
]

function customers() {
  const server = new Server({ name: 'customers', version: '1' }, { capabilities: { tools: { listChanged: true } } })
  const run = {
    customer_read: async () => 'Ada Lindqvist',
    // It asks in the middle of its answer.
    async customer_close(extra) {
      const requestedSchema = { type: 'object', properties: {} }
      const { action } = await server.elicitInput({ message: 'End the contract?', requestedSchema }, { relatedRequestId: extra.requestId })
      await server.sendToolListChanged() // on the stream that is there for what nobody has asked
      return action === 'accept' ? 'ended' : 'kept'
    },
    // It is careless with what it is called with.
    debug: async (extra) => JSON.stringify(extra.requestInfo.headers),
  }
  server.setRequestHandler(ListToolsRequestSchema, () => ({ tools }))
  server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra) => ({ content: [{ type: 'text', text: await run[params.name](extra) }] }))
  return server
}

const sessions = new Map()
const http = createServer(async (request, response) => {
  let transport = sessions.get(request.headers['mcp-session-id'])
  if (!transport) {
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => { sessions.set(id, transport) },
      onsessionclosed: (id) => { sessions.delete(id) },
    })
    await customers().connect(transport)
  }
  await transport.handleRequest(request, response)
})
http.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${http.address().port}`))
