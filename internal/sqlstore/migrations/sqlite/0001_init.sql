-- The vault's first schema, for SQLite 3.37 or newer.
--
-- Every key begins with the domain, so that a sharded engine can distribute by
-- it. Times are microseconds since 1970 UTC, 0 is "never". Booleans are 0 or 1.
-- Lists and maps are JSON with sorted keys.

-- +goose Up
create table meta (
	name  text not null,
	value blob not null,
	constraint meta_pk primary key (name)
) strict, without rowid;

create table domain (
	domain_uid         text    not null,
	domain_id          text    not null,
	display_name       text    not null,
	region             text    not null,
	state              text    not null,
	inaccessible_since integer not null,
	reserved_key       text    not null,
	reserved_value     text    not null,
	kms_key            text    not null,
	kms_key_given      text    not null,
	key_epoch          integer not null,
	last_epoch         integer not null,
	change_job         text    not null,
	change_key         text    not null,
	change_epoch       integer not null,
	key_accounts       text    not null,
	import_sources     text    not null,
	labels             text    not null,
	version            integer not null,
	create_time        integer not null,
	update_time        integer not null,
	constraint domain_pk primary key (domain_uid),
	constraint domain_id_unique unique (domain_id),
	constraint domain_state_known check (state in ('PENDING_KEY', 'ACTIVE', 'KEY_INACCESSIBLE', 'DELETED'))
) strict;

create index domain_deleted on domain (domain_uid) where state = 'DELETED';
create index domain_changing on domain (change_key) where change_job <> '';
create index domain_importing on domain (domain_uid) where import_sources <> '[]';

create table domain_key (
	domain_uid    text    not null,
	key_epoch     integer not null,
	kms_key       text    not null,
	state         text    not null,
	activate_time integer not null,
	replace_time  integer not null,
	retire_time   integer not null,
	constraint domain_key_pk primary key (domain_uid, key_epoch),
	constraint domain_key_domain foreign key (domain_uid) references domain (domain_uid),
	constraint domain_key_state_known check (state in ('PREPARING', 'CURRENT', 'SUPERSEDED', 'CLOSED', 'RETIRED', 'ABANDONED'))
) strict, without rowid;

create index domain_key_by_key on domain_key (kms_key);

-- A row is pending while key_epoch is below its domain's. There is no index on
-- key_epoch: each move would have to change it.
create table data_key (
	domain_uid      text    not null,
	data_key_id     text    not null,
	data_key_uid    text    not null,
	ciphertext      blob    not null,
	context         text    not null,
	key_spec        text    not null,
	key_epoch       integer not null,
	key_material_id text    not null,
	kms_request_id  text    not null,
	abandoned       integer not null,
	version         integer not null,
	create_time     integer not null,
	update_time     integer not null,
	constraint data_key_pk primary key (domain_uid, data_key_id),
	constraint data_key_domain foreign key (domain_uid) references domain (domain_uid),
	constraint data_key_abandoned_bool check (abandoned in (0, 1)),
	constraint data_key_ciphertext_size check (length(ciphertext) between 1 and 6144)
) strict, without rowid;

-- The ids of deleted data keys: an id is never given out twice.
create table data_key_tombstone (
	domain_uid   text    not null,
	data_key_id  text    not null,
	data_key_uid text    not null,
	delete_time  integer not null,
	constraint data_key_tombstone_pk primary key (domain_uid, data_key_id)
) strict, without rowid;

create table domain_grant (
	domain_uid        text    not null,
	grant_id          text    not null,
	grant_uid         text    not null,
	worker            integer not null,
	grantee           text    not null,
	operations        text    not null,
	constraint_subset text    not null,
	constraint_equals text    not null,
	state             text    not null,
	expire_time       integer not null,
	version           integer not null,
	create_time       integer not null,
	update_time       integer not null,
	constraint domain_grant_pk primary key (domain_uid, grant_id),
	constraint domain_grant_uid_unique unique (domain_uid, grant_uid),
	constraint domain_grant_domain foreign key (domain_uid) references domain (domain_uid),
	constraint domain_grant_worker_bool check (worker in (0, 1)),
	constraint domain_grant_state_known check (state in ('CREATING', 'ACTIVE', 'EXPIRED', 'REVOKED', 'FAILED', 'REVOKED_BY_CUSTOMER'))
) strict;

create index domain_grant_due on domain_grant (expire_time)
	where state in ('CREATING', 'ACTIVE') and expire_time > 0;

create table kms_grant (
	domain_uid   text    not null,
	grant_uid    text    not null,
	key_epoch    integer not null,
	kind         text    not null,
	attempt      integer not null,
	worker       integer not null,
	name         text    not null,
	kms_key      text    not null,
	kms_grant_id text    not null,
	state        text    not null,
	intend_time  integer not null,
	live_time    integer not null,
	end_time     integer not null,
	next_try     integer not null,
	miss_time    integer not null,
	constraint kms_grant_pk primary key (domain_uid, grant_uid, key_epoch, kind, attempt),
	constraint kms_grant_name_unique unique (name),
	constraint kms_grant_grant foreign key (domain_uid, grant_uid) references domain_grant (domain_uid, grant_uid),
	constraint kms_grant_worker_bool check (worker in (0, 1)),
	constraint kms_grant_kind_known check (kind in ('wrap', 'unwrap')),
	constraint kms_grant_state_known check (state in ('INTENDED', 'LIVE', 'RETIRING', 'RETIRED', 'FAILED', 'GONE'))
) strict, without rowid;

create index kms_grant_stale on kms_grant (next_try) where state in ('INTENDED', 'RETIRING');
create index kms_grant_by_key on kms_grant (kms_key) where state in ('INTENDED', 'LIVE', 'RETIRING');

-- The keys whose grants are listed at KMS from time to time: each key that a
-- domain uses or used lately.
create table listed_key (
	kms_key   text    not null,
	list_time integer not null,
	use_time  integer not null,
	constraint listed_key_pk primary key (kms_key)
) strict, without rowid;

create index listed_key_due on listed_key (list_time);

create table request (
	caller     text    not null,
	method     text    not null,
	request_id text    not null,
	hash       blob    not null,
	resource   text    not null,
	done       integer not null,
	until_time integer not null,
	constraint request_pk primary key (caller, method, request_id),
	constraint request_done_bool check (done in (0, 1))
) strict, without rowid;

create index request_forgettable on request (until_time) where done;

create table audit_event (
	seq            integer primary key autoincrement,
	event_time     integer not null,
	caller         text    not null,
	action         text    not null,
	domain_uid     text    not null,
	resource       text    not null,
	outcome        text    not null,
	request_id     text    not null,
	kms_request_id text    not null,
	detail         text    not null,
	constraint audit_event_outcome_known check (outcome in ('INTENDED', 'DONE', 'REFUSED'))
) strict;

create table job (
	domain_uid       text    not null,
	job_id           text    not null,
	kind             text    not null,
	phase            text    not null,
	state            text    not null,
	block_reason     text    not null,
	block_side       text    not null,
	block_message    text    not null,
	block_since      integer not null,
	block_next_probe integer not null,
	source_epoch     integer not null,
	target_epoch     integer not null,
	source_key       text    not null,
	target_key       text    not null,
	target_given     text    not null,
	target_material  text    not null,
	reason           text    not null,
	caller           text    not null,
	allow_inaccessible integer not null,
	accept_mismatch  integer not null,
	undo             text    not null,
	fail_reason      text    not null,
	fail_message     text    not null,
	wait_message     text    not null,
	wait_until       integer not null,
	prepare_time     integer not null,
	grant_time       integer not null,
	switch_time      integer not null,
	last_move_time   integer not null,
	close_time       integer not null,
	retire_time      integer not null,
	list_time        integer not null,
	grants_retired   integer not null,
	estimated_rows   integer not null,
	verified_rows    integer not null,
	lease_owner      text    not null,
	lease_seq        integer not null,
	lease_until      integer not null,
	version          integer not null,
	create_time      integer not null,
	update_time      integer not null,
	end_time         integer not null,
	constraint job_pk primary key (domain_uid, job_id),
	constraint job_domain foreign key (domain_uid) references domain (domain_uid),
	constraint job_kind_known check (kind in ('KEY_CHANGE', 'KEY_MATERIAL', 'VERIFY')),
	constraint job_phase_known check (phase in ('PREPARING', 'REENCRYPTING', 'DRAINING', 'VERIFYING', 'RETIRING')),
	constraint job_state_known check (state in ('RUNNING', 'PAUSED', 'BLOCKED', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'SUPERSEDED'))
) strict;

create index job_open on job (create_time, domain_uid, job_id) where state in ('RUNNING', 'PAUSED', 'BLOCKED');

create table shard (
	domain_uid  text    not null,
	job_id      text    not null,
	shard_index integer not null,
	low         text    not null,
	high        text    not null,
	cursor      text    not null,
	again       integer not null,
	finished    integer not null,
	done        integer not null,
	relabelled  integer not null,
	failed      integer not null,
	lease_owner text    not null,
	lease_seq   integer not null,
	lease_until integer not null,
	constraint shard_pk primary key (domain_uid, job_id, shard_index),
	constraint shard_job foreign key (domain_uid, job_id) references job (domain_uid, job_id),
	constraint shard_again_bool check (again in (0, 1)),
	constraint shard_finished_bool check (finished in (0, 1))
) strict, without rowid;

create table job_failure (
	domain_uid   text    not null,
	job_id       text    not null,
	data_key_id  text    not null,
	data_key_uid text    not null,
	version      integer not null,
	class        text    not null,
	message      text    not null,
	fail_time    integer not null,
	acknowledged integer not null,
	constraint job_failure_pk primary key (domain_uid, job_id, data_key_id),
	constraint job_failure_job foreign key (domain_uid, job_id) references job (domain_uid, job_id)
) strict, without rowid;

create table job_moved (
	domain_uid      text    not null,
	job_id          text    not null,
	source_key      text    not null,
	source_material text    not null,
	new_material    text    not null,
	moved           integer not null,
	constraint job_moved_pk primary key (domain_uid, job_id, source_key, source_material, new_material),
	constraint job_moved_job foreign key (domain_uid, job_id) references job (domain_uid, job_id)
) strict, without rowid;

create table periodic (
	name      text    not null,
	owner     text    not null,
	take_time integer not null,
	constraint periodic_pk primary key (name)
) strict, without rowid;
