-- What the gateway knows of a session that calls through it.
create table gateway_session (
	tenant_id text not null,
	session_id text not null,
	ca bytes, -- the session's own certificate authority, sealed
	created_at bigint not null,
	closed_at bigint, -- when the closing statement was written
	primary key (tenant_id, session_id)
);

create index gateway_session_open on gateway_session (created_at) where closed_at is null;
