-- Requests of clients that have no browser to send, which wait for a person who
-- decides elsewhere: by a code that the client shows them (RFC 8628), or because
-- the client names them (OpenID Connect CIBA).
create table oauth_waiting (
	tenant_id text not null,
	id text not null,
	hash bytes not null, -- of what the client asks with
	user_hash bytes, -- of what the person types, by a key; null where the client names them
	person_id text, -- who is asked; null for whoever types the code
	kind text not null, -- the grant type
	client_id text not null,
	request text not null, -- what is asked for, as a form
	jkt text not null, -- the key that must be shown; '' for none
	address text not null, -- where the request came from
	created_at bigint not null,
	expires_at bigint not null,
	pause bigint not null, -- that the client makes between two questions, in microseconds
	polled_at bigint,
	state text not null check (state in ('pending', 'approved', 'denied', 'redeemed')),
	decided_by text,
	decided_at bigint,
	grant_id text,
	primary key (tenant_id, id),
	unique (tenant_id, hash),
	unique (tenant_id, user_hash),
	check ((state in ('approved', 'redeemed')) = (grant_id is not null)),
	foreign key (tenant_id, grant_id) references oauth_grant (tenant_id, id)
);

create index oauth_waiting_due on oauth_waiting (expires_at);
create index oauth_waiting_person on oauth_waiting (tenant_id, person_id) where state = 'pending' and person_id is not null;
