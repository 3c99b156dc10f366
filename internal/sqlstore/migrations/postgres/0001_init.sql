-- The vault's first schema, for PostgreSQL 14 or newer: that of SQLite, table by
-- table and constraint by constraint.
--
-- Every key begins with the domain, so that a sharded engine can distribute by
-- it. Times are microseconds since 1970 UTC, 0 is "never". Lists and maps are JSON
-- with sorted keys. Whatever is part of a key sorts by its bytes (collate "C").
--
-- Rows that are changed in place again and again leave room on their page
-- (fillfactor): a change that touches no index then stays on it, and what it
-- leaves behind is cleared by the next reader, without vacuum.

-- +goose Up
-- One row: what a program must know, at least, to run on this schema. A migration
-- that takes something away raises it to the version from which on programs do
-- without; a rolling upgrade needs the programs in use to be no older.
create table compatibility (
	one          boolean not null default true,
	oldest_known bigint  not null,
	constraint compatibility_pk primary key (one),
	constraint compatibility_one_row check (one)
);

insert into compatibility (oldest_known) values (1);

create table meta (
	name  text collate "C" not null,
	value bytea            not null,
	constraint meta_pk primary key (name)
);

create table domain (
	domain_uid         text collate "C" not null,
	domain_id          text collate "C" not null,
	display_name       text             not null,
	region             text             not null,
	state              text             not null,
	inaccessible_since bigint           not null,
	reserved_key       text             not null,
	reserved_value     text             not null,
	kms_key            text collate "C" not null,
	kms_key_given      text             not null,
	key_epoch          bigint           not null,
	last_epoch         bigint           not null,
	change_job         text             not null,
	change_key         text collate "C" not null,
	change_epoch       bigint           not null,
	key_accounts       text             not null,
	import_sources     text             not null,
	labels             text             not null,
	version            bigint           not null,
	create_time        bigint           not null,
	update_time        bigint           not null,
	constraint domain_pk primary key (domain_uid),
	constraint domain_id_unique unique (domain_id),
	constraint domain_state_known check (state in ('PENDING_KEY', 'ACTIVE', 'KEY_INACCESSIBLE', 'DELETED'))
) with (fillfactor = 70);

create index domain_deleted on domain (domain_uid) where state = 'DELETED';
create index domain_changing on domain (change_key) where change_job <> '';
create index domain_importing on domain (domain_uid) where import_sources <> '[]';

create table domain_key (
	domain_uid    text collate "C" not null,
	key_epoch     bigint           not null,
	kms_key       text collate "C" not null,
	state         text             not null,
	activate_time bigint           not null,
	replace_time  bigint           not null,
	retire_time   bigint           not null,
	constraint domain_key_pk primary key (domain_uid, key_epoch),
	constraint domain_key_domain foreign key (domain_uid) references domain (domain_uid),
	constraint domain_key_state_known check (state in ('PREPARING', 'CURRENT', 'SUPERSEDED', 'CLOSED', 'RETIRED', 'ABANDONED'))
);

create index domain_key_by_key on domain_key (kms_key);

-- A row is pending while key_epoch is below its domain's. There is no index on
-- key_epoch: each move would have to change it. Vacuum comes when 2 % of the rows
-- are dead, not 20 %: a key change leaves one dead version of each.
create table data_key (
	domain_uid      text collate "C" not null,
	data_key_id     text collate "C" not null,
	data_key_uid    text collate "C" not null,
	ciphertext      bytea            not null,
	context         text             not null,
	key_spec        text             not null,
	key_epoch       bigint           not null,
	key_material_id text             not null,
	kms_request_id  text             not null,
	abandoned       boolean          not null,
	version         bigint           not null,
	create_time     bigint           not null,
	update_time     bigint           not null,
	constraint data_key_pk primary key (domain_uid, data_key_id),
	constraint data_key_domain foreign key (domain_uid) references domain (domain_uid),
	constraint data_key_ciphertext_size check (length(ciphertext) between 1 and 6144)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

-- The ids of deleted data keys: an id is never given out twice.
create table data_key_tombstone (
	domain_uid   text collate "C" not null,
	data_key_id  text collate "C" not null,
	data_key_uid text collate "C" not null,
	delete_time  bigint           not null,
	constraint data_key_tombstone_pk primary key (domain_uid, data_key_id)
);

create table domain_grant (
	domain_uid        text collate "C" not null,
	grant_id          text collate "C" not null,
	grant_uid         text collate "C" not null,
	worker            boolean          not null,
	grantee           text             not null,
	operations        text             not null,
	constraint_subset text             not null,
	constraint_equals text             not null,
	state             text             not null,
	expire_time       bigint           not null,
	version           bigint           not null,
	create_time       bigint           not null,
	update_time       bigint           not null,
	constraint domain_grant_pk primary key (domain_uid, grant_id),
	constraint domain_grant_uid_unique unique (domain_uid, grant_uid),
	constraint domain_grant_domain foreign key (domain_uid) references domain (domain_uid),
	constraint domain_grant_state_known check (state in ('CREATING', 'ACTIVE', 'EXPIRED', 'REVOKED', 'FAILED', 'REVOKED_BY_CUSTOMER'))
) with (fillfactor = 70);

create index domain_grant_due on domain_grant (expire_time)
	where state in ('CREATING', 'ACTIVE') and expire_time > 0;

create table kms_grant (
	domain_uid   text collate "C" not null,
	grant_uid    text collate "C" not null,
	key_epoch    bigint           not null,
	kind         text collate "C" not null,
	attempt      bigint           not null,
	worker       boolean          not null,
	name         text collate "C" not null,
	kms_key      text collate "C" not null,
	kms_grant_id text             not null,
	state        text             not null,
	intend_time  bigint           not null,
	live_time    bigint           not null,
	end_time     bigint           not null,
	next_try     bigint           not null,
	miss_time    bigint           not null,
	constraint kms_grant_pk primary key (domain_uid, grant_uid, key_epoch, kind, attempt),
	constraint kms_grant_name_unique unique (name),
	constraint kms_grant_grant foreign key (domain_uid, grant_uid) references domain_grant (domain_uid, grant_uid),
	constraint kms_grant_kind_known check (kind in ('wrap', 'unwrap')),
	constraint kms_grant_state_known check (state in ('INTENDED', 'LIVE', 'RETIRING', 'RETIRED', 'FAILED', 'GONE'))
) with (fillfactor = 70);

create index kms_grant_stale on kms_grant (next_try) where state in ('INTENDED', 'RETIRING');
create index kms_grant_by_key on kms_grant (kms_key) where state in ('INTENDED', 'LIVE', 'RETIRING');

-- The keys whose grants are listed at KMS from time to time: each key that a
-- domain uses or used lately.
create table listed_key (
	kms_key   text collate "C" not null,
	list_time bigint           not null,
	use_time  bigint           not null,
	constraint listed_key_pk primary key (kms_key)
) with (fillfactor = 70);

create index listed_key_due on listed_key (list_time);

create table request (
	caller     text collate "C" not null,
	method     text collate "C" not null,
	request_id text collate "C" not null,
	hash       bytea            not null,
	resource   text             not null,
	done       boolean          not null,
	until_time bigint           not null,
	constraint request_pk primary key (caller, method, request_id)
);

create index request_forgettable on request (until_time) where done;

create table audit_event (
	seq            bigint           generated always as identity,
	event_time     bigint           not null,
	caller         text             not null,
	action         text             not null,
	domain_uid     text collate "C" not null,
	resource       text             not null,
	outcome        text             not null,
	request_id     text             not null,
	kms_request_id text             not null,
	detail         text             not null,
	constraint audit_event_pk primary key (seq),
	constraint audit_event_outcome_known check (outcome in ('INTENDED', 'DONE', 'REFUSED'))
);

create table job (
	domain_uid         text collate "C" not null,
	job_id             text collate "C" not null,
	kind               text             not null,
	phase              text             not null,
	state              text             not null,
	block_reason       text             not null,
	block_side         text             not null,
	block_message      text             not null,
	block_since        bigint           not null,
	block_next_probe   bigint           not null,
	source_epoch       bigint           not null,
	target_epoch       bigint           not null,
	source_key         text             not null,
	target_key         text             not null,
	target_given       text             not null,
	target_material    text             not null,
	reason             text             not null,
	caller             text             not null,
	allow_inaccessible boolean          not null,
	accept_mismatch    boolean          not null,
	undo               text             not null,
	fail_reason        text             not null,
	fail_message       text             not null,
	wait_message       text             not null,
	wait_until         bigint           not null,
	prepare_time       bigint           not null,
	grant_time         bigint           not null,
	switch_time        bigint           not null,
	last_move_time     bigint           not null,
	close_time         bigint           not null,
	retire_time        bigint           not null,
	list_time          bigint           not null,
	grants_retired     bigint           not null,
	estimated_rows     bigint           not null,
	verified_rows      bigint           not null,
	lease_owner        text             not null,
	lease_seq          bigint           not null,
	lease_until        bigint           not null,
	version            bigint           not null,
	create_time        bigint           not null,
	update_time        bigint           not null,
	end_time           bigint           not null,
	constraint job_pk primary key (domain_uid, job_id),
	constraint job_domain foreign key (domain_uid) references domain (domain_uid),
	constraint job_kind_known check (kind in ('KEY_CHANGE', 'KEY_MATERIAL', 'VERIFY')),
	constraint job_phase_known check (phase in ('PREPARING', 'REENCRYPTING', 'DRAINING', 'VERIFYING', 'RETIRING')),
	constraint job_state_known check (state in ('RUNNING', 'PAUSED', 'BLOCKED', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'SUPERSEDED'))
) with (fillfactor = 50);

create index job_open on job (create_time, domain_uid, job_id) where state in ('RUNNING', 'PAUSED', 'BLOCKED');

create table shard (
	domain_uid  text collate "C" not null,
	job_id      text collate "C" not null,
	shard_index bigint           not null,
	low         text collate "C" not null,
	high        text collate "C" not null,
	cursor      text collate "C" not null,
	again       boolean          not null,
	finished    boolean          not null,
	done        bigint           not null,
	relabelled  bigint           not null,
	failed      bigint           not null,
	lease_owner text             not null,
	lease_seq   bigint           not null,
	lease_until bigint           not null,
	constraint shard_pk primary key (domain_uid, job_id, shard_index),
	constraint shard_job foreign key (domain_uid, job_id) references job (domain_uid, job_id)
) with (fillfactor = 50);

create table job_failure (
	domain_uid   text collate "C" not null,
	job_id       text collate "C" not null,
	data_key_id  text collate "C" not null,
	data_key_uid text collate "C" not null,
	version      bigint           not null,
	class        text             not null,
	message      text             not null,
	fail_time    bigint           not null,
	acknowledged boolean          not null,
	constraint job_failure_pk primary key (domain_uid, job_id, data_key_id),
	constraint job_failure_job foreign key (domain_uid, job_id) references job (domain_uid, job_id)
);

create table job_moved (
	domain_uid      text collate "C" not null,
	job_id          text collate "C" not null,
	source_key      text collate "C" not null,
	source_material text collate "C" not null,
	new_material    text collate "C" not null,
	moved           bigint           not null,
	constraint job_moved_pk primary key (domain_uid, job_id, source_key, source_material, new_material),
	constraint job_moved_job foreign key (domain_uid, job_id) references job (domain_uid, job_id)
) with (fillfactor = 50);

create table periodic (
	name      text collate "C" not null,
	owner     text             not null,
	take_time bigint           not null,
	constraint periodic_pk primary key (name)
) with (fillfactor = 50);
