//! The seeded tables: the standard ones that a sales team uses, as far as promises touch them, and one custom table.
//!
//! Names from the table reference, `power-apps/developer/data-platform/reference/entities`.

use super::schema::{Kind, Required, Table, options};

const REGARDING: [&str; 5] = ["account", "contact", "lead", "opportunity", "incident"];
const MONEY: Kind = Kind::Money { min: 0.0, max: 100_000_000_000.0, precision: 2 };
const MOMENT: Kind = Kind::DateTime { date_only: false };
const DAY: Kind = Kind::DateTime { date_only: true };

pub(super) fn tables() -> Vec<Table> {
    vec![
        account(),
        contact(),
        lead(),
        opportunity(),
        incident(),
        activity("task", "Task", "tasks", 4212)
            .with("percentcomplete", Kind::Integer { min: 0, max: 100 })
            .with("actualdurationminutes", Kind::Integer { min: 0, max: 2_147_483_647 })
            .states(
                &[(0, "Open"), (1, "Completed"), (2, "Canceled")],
                &[(3, "In Progress", 0), (2, "Not Started", 0), (5, "Completed", 1), (6, "Canceled", 2)],
            ),
        activity("phonecall", "PhoneCall", "phonecalls", 4210)
            .text("phonenumber", 200)
            .with("directioncode", Kind::Boolean)
            .states(
                &[(0, "Open"), (1, "Completed"), (2, "Canceled")],
                &[(1, "Open", 0), (2, "Made", 1), (4, "Received", 1), (3, "Canceled", 2)],
            ),
        annotation(),
        system_user(),
        business_unit(),
        promise(),
    ]
}

fn active(table: Table) -> Table {
    table.states(&[(0, "Active"), (1, "Inactive")], &[(1, "Active", 0), (2, "Inactive", 1)])
}

fn account() -> Table {
    let table = Table::new("account", "Account", "accounts", "name", 1)
        .text("name", 160)
        .required(Required::ApplicationRequired)
        .text("accountnumber", 20)
        .text("emailaddress1", 100)
        .schema_name("EMailAddress1")
        .text("telephone1", 50)
        .text("websiteurl", 200)
        .schema_name("WebSiteURL")
        .memo("description", 2000)
        .with("revenue", MONEY)
        .with("numberofemployees", Kind::Integer { min: 0, max: 1_000_000_000 })
        .with("creditonhold", Kind::Boolean)
        .choice(
            "industrycode",
            &[(1, "Accounting"), (6, "Consulting"), (7, "Consumer Services"), (12, "Engineering")],
        )
        .choice("customertypecode", &[(1, "Competitor"), (3, "Customer"), (8, "Prospect"), (12, "Other")])
        .text("address1_city", 80)
        .text("address1_country", 80)
        .with("lastonholdtime", MOMENT)
        .lookup("primarycontactid", "contact", "primarycontactid")
        .schema_name("PrimaryContactId")
        .lookup("parentaccountid", "account", "parentaccountid")
        .schema_name("ParentAccountId")
        .owned()
        .key("new_accountnumber_key", &["accountnumber"]);
    active(table)
}

fn contact() -> Table {
    let table = Table::new("contact", "Contact", "contacts", "fullname", 2)
        .text("firstname", 50)
        .required(Required::Recommended)
        .text("lastname", 50)
        .required(Required::ApplicationRequired)
        .text("fullname", 160)
        .rights(false, false)
        .text("emailaddress1", 100)
        .schema_name("EMailAddress1")
        .text("telephone1", 50)
        .text("mobilephone", 50)
        .text("jobtitle", 100)
        .memo("description", 2000)
        .with("birthdate", DAY)
        .with("donotemail", Kind::Boolean)
        .with("parentcustomerid", Kind::Customer(vec!["account", "contact"]))
        .schema_name("ParentCustomerId")
        .relation("parentcustomerid", "account", "parentcustomerid_account")
        .relation("parentcustomerid", "contact", "parentcustomerid_contact")
        .owned();
    active(table)
}

fn lead() -> Table {
    Table::new("lead", "Lead", "leads", "fullname", 4)
        .text("subject", 300)
        .required(Required::ApplicationRequired)
        .text("firstname", 50)
        .text("lastname", 50)
        .required(Required::ApplicationRequired)
        .text("fullname", 160)
        .rights(false, false)
        .text("companyname", 100)
        .text("emailaddress1", 100)
        .schema_name("EMailAddress1")
        .text("telephone1", 50)
        .memo("description", 2000)
        .choice("leadqualitycode", &[(1, "Hot"), (2, "Warm"), (3, "Cold")])
        .lookup("parentaccountid", "account", "parentaccountid")
        .lookup("parentcontactid", "contact", "parentcontactid")
        .owned()
        .states(
            &[(0, "Open"), (1, "Qualified"), (2, "Disqualified")],
            &[
                (1, "New", 0),
                (2, "Contacted", 0),
                (3, "Qualified", 1),
                (4, "Lost", 2),
                (5, "Cannot Contact", 2),
            ],
        )
}

fn opportunity() -> Table {
    Table::new("opportunity", "Opportunity", "opportunities", "name", 3)
        .text("name", 300)
        .required(Required::ApplicationRequired)
        .memo("description", 2000)
        .with("estimatedvalue", MONEY)
        .with("actualvalue", MONEY)
        .with("estimatedclosedate", DAY)
        .with("closeprobability", Kind::Integer { min: 0, max: 100 })
        .text("stepname", 200)
        .memo("currentsituation", 2000)
        .memo("customerneed", 2000)
        .choice("opportunityratingcode", &[(1, "Hot"), (2, "Warm"), (3, "Cold")])
        .with("customerid", Kind::Customer(vec!["account", "contact"]))
        .relation("customerid", "account", "customerid_account")
        .relation("customerid", "contact", "customerid_contact")
        .lookup("parentaccountid", "account", "parentaccountid")
        .lookup("parentcontactid", "contact", "parentcontactid")
        .owned()
        .states(
            &[(0, "Open"), (1, "Won"), (2, "Lost")],
            &[
                (1, "In Progress", 0),
                (2, "On Hold", 0),
                (3, "Won", 1),
                (4, "Canceled", 2),
                (5, "Out-Sold", 2),
            ],
        )
}

fn incident() -> Table {
    Table::new("incident", "Incident", "incidents", "title", 112)
        .text("title", 200)
        .required(Required::ApplicationRequired)
        .memo("description", 2000)
        .text("ticketnumber", 100)
        .rights(false, false)
        .choice("prioritycode", &[(1, "High"), (2, "Normal"), (3, "Low")])
        .with("customerid", Kind::Customer(vec!["account", "contact"]))
        .required(Required::SystemRequired)
        .relation("customerid", "account", "customerid_account")
        .relation("customerid", "contact", "customerid_contact")
        .owned()
        .states(
            &[(0, "Active"), (1, "Resolved"), (2, "Cancelled")],
            &[(1, "In Progress", 0), (2, "On Hold", 0), (5, "Problem Solved", 1), (6, "Cancelled", 2)],
        )
}

fn activity(logical: &'static str, schema: &'static str, set: &'static str, number: i64) -> Table {
    let mut table = Table::new(logical, schema, set, "subject", number)
        .text("subject", 200)
        .required(Required::ApplicationRequired)
        .memo("description", 2000)
        .with("scheduledstart", MOMENT)
        .with("scheduledend", MOMENT)
        .with("actualend", MOMENT)
        .text("activitytypecode", 64)
        .rights(false, false)
        .choice("prioritycode", &[(0, "Low"), (1, "Normal"), (2, "High")])
        .with("regardingobjectid", Kind::Lookup(REGARDING.to_vec()))
        .schema_name("RegardingObjectId");
    for target in REGARDING {
        table = table.relation("regardingobjectid", target, &format!("regardingobjectid_{target}_{logical}"));
    }
    table = table.relation(
        "regardingobjectid",
        "new_promise",
        &format!("regardingobjectid_new_promise_{logical}"),
    );
    table.owned()
}

fn annotation() -> Table {
    let mut table = Table::new("annotation", "Annotation", "annotations", "subject", 5)
        .text("subject", 500)
        .memo("notetext", 100_000)
        .schema_name("NoteText")
        .text("filename", 255)
        .text("mimetype", 256)
        .memo("documentbody", 1_073_741_823)
        .with("isdocument", Kind::Boolean)
        .with("filesize", Kind::Integer { min: 0, max: 1_000_000_000 })
        .rights(false, false)
        .with("objectid", Kind::Lookup(REGARDING.to_vec()));
    for target in REGARDING.into_iter().chain(["task", "phonecall"]) {
        table = table.relation("objectid", target, &format!("objectid_{target}"));
    }
    table.owned()
}

fn system_user() -> Table {
    let mut table = Table::new("systemuser", "SystemUser", "systemusers", "fullname", 8)
        .text("fullname", 200)
        .rights(false, false)
        .text("firstname", 64)
        .text("lastname", 64)
        .text("domainname", 1024)
        .text("internalemailaddress", 100)
        .with("azureactivedirectoryobjectid", Kind::UniqueId)
        .with("isdisabled", Kind::Boolean)
        .rights(false, false)
        .lookup("businessunitid", "businessunit", "businessunitid");
    table.optimistic = false;
    table.user_owned = false;
    table
}

fn business_unit() -> Table {
    let mut table = Table::new("businessunit", "BusinessUnit", "businessunits", "name", 10)
        .text("name", 160)
        .required(Required::SystemRequired);
    table.optimistic = false;
    table.user_owned = false;
    table
}

fn promise() -> Table {
    let table = Table::new("new_promise", "new_Promise", "new_promises", "new_name", 10_042)
        .text("new_name", 100)
        .schema_name("new_Name")
        .required(Required::ApplicationRequired)
        .text("new_code", 50)
        .schema_name("new_Code")
        .memo("new_details", 2000)
        .schema_name("new_Details")
        .with("new_duedate", DAY)
        .schema_name("new_DueDate")
        .with("new_agreedat", MOMENT)
        .schema_name("new_AgreedAt")
        .choice("new_outcome", &[(100_000_000, "Open"), (100_000_001, "Kept"), (100_000_002, "Broken")])
        .schema_name("new_Outcome")
        .with(
            "new_channels",
            Kind::MultiSelect(options(&[
                (100_000_000, "Mail"),
                (100_000_001, "Phone"),
                (100_000_002, "Meeting"),
            ])),
        )
        .schema_name("new_Channels")
        .with("new_weight", Kind::Integer { min: 1, max: 5 })
        .schema_name("new_Weight")
        .with("new_confidence", Kind::Decimal { min: 0.0, max: 1.0, precision: 2 })
        .schema_name("new_Confidence")
        .with("new_score", Kind::Double { min: -1_000.0, max: 1_000.0, precision: 5 })
        .schema_name("new_Score")
        .with("new_worth", MONEY)
        .schema_name("new_Worth")
        .with("new_confirmed", Kind::Boolean)
        .schema_name("new_Confirmed")
        // A custom lookup: its navigation property has the casing of the schema name.
        .lookup("new_accountid", "account", "new_AccountId")
        .schema_name("new_AccountId")
        .with("new_madeto", Kind::Customer(vec!["account", "contact"]))
        .schema_name("new_MadeTo")
        .relation("new_madeto", "account", "new_MadeTo_account")
        .relation("new_madeto", "contact", "new_MadeTo_contact")
        .owned()
        .key("new_code_key", &["new_code"]);
    active(table)
}
