-- Answers to requests that carry an idempotency key, so that a request which
-- is sent again is done once.
create table idempotent (
	tenant_id text not null,
	caller text not null,
	key_hash text not null,
	request_hash text not null,
	created_at bigint not null,
	status bigint, -- null while the request is being done
	answer bytes, -- sealed: it may hold a secret that was made
	primary key (tenant_id, caller, key_hash)
);

create index idempotent_created on idempotent (created_at);
