-- The URL of the document in which an agent says what it is as an OAuth client,
-- which is its client_id: one agent's that is not retired.
alter table agent add column metadata_url text;

create unique index agent_metadata on agent (tenant_id, metadata_url) where metadata_url is not null and ended_at is null;
