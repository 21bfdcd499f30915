-- What was recorded of sessions. The content is in blobs, named by digest.

-- What one node recorded of one session. Its blobs are sealed under its key;
-- a recording without one has been erased.
create table recording (
	tenant_id text not null,
	id text not null,
	session_id text not null,
	started_at bigint not null,
	ended_at bigint,
	erased_at bigint,
	epoch bigint not null default 1,
	key bytes,
	primary key (tenant_id, id),
	check ((key is null) = (erased_at is not null))
);

create index recording_session on recording (tenant_id, session_id, started_at);

create table recording_segment (
	tenant_id text not null,
	recording_id text not null,
	n bigint not null check (n > 0),
	digest bytes not null,
	prev bytes not null, -- the digest of segment n - 1; empty of the first
	root bytes not null,
	first_seq bigint not null,
	last_seq bigint not null,
	first_at bigint not null,
	last_at bigint not null,
	size bigint not null,
	event_id text not null,
	primary key (tenant_id, recording_id, n),
	foreign key (tenant_id, recording_id) references recording (tenant_id, id),
	check (last_seq >= first_seq)
);

create unique index recording_segment_digest on recording_segment (tenant_id, digest);

-- The blobs of long bodies, each named by a frame of a segment that was
-- written in the same commit.
create table recording_part (
	tenant_id text not null,
	recording_id text not null,
	digest bytes not null,
	size bigint not null,
	primary key (tenant_id, digest),
	foreign key (tenant_id, recording_id) references recording (tenant_id, id)
);
