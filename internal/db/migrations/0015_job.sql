-- What is done again and again, once in the whole installation: when it is due,
-- and which node does it until when.
create table job (
	name text primary key,
	due bigint not null,
	holder text not null,
	held_until bigint not null
);
