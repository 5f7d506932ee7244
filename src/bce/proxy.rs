//! The proxy between us and the API, from the environment: `HTTPS_PROXY` or `HTTP_PROXY`, by the endpoint's scheme,
//! else `ALL_PROXY`, each also in lower case, except for hosts in `NO_PROXY`.
//!
//! reqwest reads these too, but ignores values it cannot parse, so that calls would bypass the proxy, and its errors do
//! not name the variable. So they are read here, once, and passed to reqwest.
//!
//! reqwest also fails every call through a SOCKS proxy, as if the API were down. Read with the rest of the
//! configuration, unusable values are problems like others, and each endpoint knows its proxy by name. Exempt hosts are
//! decided by hyper-util's matcher, which reqwest uses too.
//!
//! A 407 is never an API answer, whatever its body. It pauses the lane like a refused certificate, since no call can
//! succeed until the variable is corrected. Other refusals by a proxy (a 403 or 502 to `CONNECT`) may be temporary, and
//! hyper does not distinguish them: they are outages, and the text names the variable.

use std::error::Error;
use std::fmt;

use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

/// The variables for one purpose: the first that is set counts, even if it is empty.
const HTTP: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
const HTTPS: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];
const NONE: [&str; 2] = ["NO_PROXY", "no_proxy"];

const EXPECTED: &str = "expected the URL of an HTTP proxy without a path, such as http://proxy.example.com:3128 or \
                        http://USER:PASSWORD@proxy.example.com:3128, with other than letters and digits in the password \
                        percent-encoded";

/// The text of hyper's tunnel error; nothing else identifies it.
const WANTS_A_USER: &str = "tunnel error: proxy authorization required";
const NOT_REACHED: &str = "tunnel error: failed to create underlying connection";

/// The proxy settings in the environment.
#[derive(Default)]
pub struct Proxies {
    http: Option<Setting>,
    https: Option<Setting>,
    all: Option<Setting>,
    /// Hosts, domains and networks, separated by commas.
    exempt: String,
}

/// A variable that is set and not empty.
struct Setting {
    variable: &'static str,
    value: String,
}

/// A proxy through which calls go.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    variable: &'static str,
    /// Contains the password: print [`Proxy::address`] instead.
    url: Url,
}

/// Why a variable that would be used cannot be. It shows nothing of the value, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyFault {
    /// `HTTPS_PROXY`, or another.
    pub variable: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Proxies {
    /// Reads them from the environment.
    pub fn read(environment: &[(String, String)]) -> Self {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|variable| {
                let (_, value) = environment.iter().find(|(name, _)| name == variable)?;
                Some(Setting { variable, value: value.trim().to_owned() })
            })
        };
        let set = |names| first(names).filter(|setting| !setting.value.is_empty());
        let exempt = first(NONE).map(|setting| setting.value).unwrap_or_default();
        Self { http: set(HTTP), https: set(HTTPS), all: set(ALL), exempt }
    }

    /// The proxy between us and the API at `endpoint`, if there is one.
    ///
    /// # Errors
    /// [`ProxyFault`]: the variable does not name a usable proxy.
    pub(super) fn of(&self, endpoint: &Url) -> Result<Option<Proxy>, ProxyFault> {
        let own = if endpoint.scheme() == "https" { &self.https } else { &self.http };
        let Some(Setting { variable, value }) = own.as_ref().or(self.all.as_ref()) else { return Ok(None) };
        if !is_taken("http://proxy", &self.exempt, endpoint) {
            return Ok(None);
        }
        let fault = |problem: &str| ProxyFault { variable, problem: format!("{problem}: {EXPECTED}") };
        let url = parse(value).map_err(fault)?;
        // reqwest would ignore it, and call the API directly.
        if !is_taken(url.as_str(), "", endpoint) {
            return Err(fault("is no URL of a proxy"));
        }
        Ok(Some(Proxy { variable, url }))
    }
}

/// Whether reqwest would use this proxy for the endpoint.
fn is_taken(proxy: &str, exempt: &str, endpoint: &Url) -> bool {
    let Ok(uri) = endpoint.as_str().parse::<Uri>() else { return false };
    Matcher::builder().all(proxy).no(exempt).build().intercept(&uri).is_some()
}

fn parse(value: &str) -> Result<Url, &'static str> {
    let url = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let url = Url::parse(&url).map_err(|_| "is no URL of a proxy")?;
    if url.scheme().starts_with("socks") {
        return Err("names a SOCKS proxy, which reveille cannot use");
    }
    let is_bare = matches!(url.scheme(), "http" | "https")
        && url.host_str().is_some_and(|host| !host.is_empty())
        && url.port() != Some(0)
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none();
    if is_bare { Ok(url) } else { Err("is no URL of a proxy") }
}

/// As a resolver takes them: an IPv6 address without its brackets.
pub(super) fn host_and_port(url: &Url) -> (String, u16) {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    (host.to_owned(), url.port_or_known_default().unwrap_or_default())
}

impl Proxy {
    /// The variable that names it.
    pub fn variable(&self) -> &'static str {
        self.variable
    }

    /// Scheme, host and port: nothing else of it may be shown.
    pub fn address(&self) -> String {
        let (scheme, host) = (self.url.scheme(), self.url.host_str().unwrap_or_default());
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port}")
    }

    /// Where connections to it are opened.
    pub(super) fn host_and_port(&self) -> (String, u16) {
        host_and_port(&self.url)
    }

    /// The proxy for reqwest.
    pub(super) fn to_reqwest(&self) -> Result<reqwest::Proxy, reqwest::Error> {
        reqwest::Proxy::all(self.url.clone()).map_err(reqwest::Error::without_url)
    }

    /// The advice if the proxy asks for a user and password.
    pub(super) fn wants_a_user(&self) -> String {
        let variable = self.variable;
        let (says, what) = if self.url.username().is_empty() {
            ("wants a user and a password", "put them")
        } else {
            ("refuses its user and password", "put the right ones")
        };
        format!(
            "the proxy of {variable} {says} (407): {what} into {variable}, as in http://USER:PASSWORD@HOST:PORT, and restart \
             the daemon"
        )
    }

    /// What is wrong with the proxy itself, if that is why no connection was made. `is_tls`: a certificate was refused.
    pub(super) fn fault(
        &self,
        causes: &[&(dyn Error + 'static)],
        is_tls: bool,
        endpoint: &Url,
        why: &str,
    ) -> Option<String> {
        let says = |text: &str| causes.iter().any(|cause| cause.to_string() == text);
        if says(WANTS_A_USER) {
            return Some(self.wants_a_user());
        }
        let is_its_own = is_tls && (endpoint.scheme() == "http" || says(NOT_REACHED));
        let variable = self.variable;
        is_its_own.then(|| {
            format!("the certificate of the proxy of {variable} was refused ({why}): check {variable}, and the certificates this machine trusts")
        })
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("variable", &self.variable).field("address", &self.address()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(environment: &[(&str, &str)], endpoint: &str) -> Result<Option<(&'static str, String)>, ProxyFault> {
        let environment: Vec<(String, String)> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let proxy = Proxies::read(&environment).of(&endpoint.parse().unwrap())?;
        Ok(proxy.map(|proxy| (proxy.variable(), proxy.address())))
    }

    const API: &str = "https://bcc.bj.baidubce.com";

    #[test]
    fn the_scheme_of_the_endpoint_picks_the_variable() {
        let both =
            [("HTTP_PROXY", "http://plain:1"), ("HTTPS_PROXY", "http://secure:2"), ("ALL_PROXY", "http://all:3")];
        let is = |variable, address: &str| Ok(Some((variable, address.to_owned())));
        assert_eq!(of(&both, API), is("HTTPS_PROXY", "http://secure:2"));
        assert_eq!(of(&both, "http://h:8080"), is("HTTP_PROXY", "http://plain:1"));
        assert_eq!(of(&both[1..], "http://h:8080"), is("ALL_PROXY", "http://all:3"));
        assert_eq!(of(&both[..1], API), Ok(None));
        assert_eq!(of(&[], API), Ok(None));
    }

    #[test]
    fn upper_case_goes_over_lower_case_and_an_empty_one_is_none() {
        let is = |variable, address: &str| Ok(Some((variable, address.to_owned())));
        assert_eq!(of(&[("https_proxy", "l"), ("HTTPS_PROXY", "u")], API), is("HTTPS_PROXY", "http://u"));
        assert_eq!(of(&[("https_proxy", "l:3128")], API), is("https_proxy", "http://l:3128"));
        assert_eq!(of(&[("https_proxy", "l"), ("HTTPS_PROXY", " ")], API), Ok(None));
        assert_eq!(of(&[("HTTPS_PROXY", ""), ("all_proxy", "a")], API), is("all_proxy", "http://a"));
        assert_eq!(of(&[("Https_Proxy", "x")], API), Ok(None));
    }

    #[test]
    fn what_is_exempt_is_called_directly_and_its_variable_is_not_looked_at() {
        let exempt = |list: &str, endpoint: &str| of(&[("ALL_PROXY", "socks5://s"), ("NO_PROXY", list)], endpoint);
        for list in ["*", "bcc.bj.baidubce.com", "baidubce.com", " a, .baidubce.com"] {
            assert_eq!(exempt(list, API), Ok(None), "{list}");
        }
        assert_eq!(exempt("10.0.0.0/8,::1", "http://10.1.2.3:80"), Ok(None));
        for list in ["", "baidu.com", "bce.com", "10.0.0.0/8"] {
            assert!(exempt(list, API).is_err(), "{list}");
        }
    }

    #[test]
    fn what_is_no_http_proxy_is_a_fault_that_shows_nothing_of_it() {
        for value in ["socks5://u:hush@p:1080", "socks4a://hush", "SOCKS5h://hush:1"] {
            let fault = of(&[("HTTPS_PROXY", value)], API).unwrap_err();
            assert!(fault.problem.contains("SOCKS") && !fault.problem.contains("hush"), "{fault:?}");
        }
        let nonsense = [
            "http://",
            "://hush",
            "not a hush",
            "http://p:hush",
            "p:99999",
            "http://u:hu#sh@p:1",
            "http://u:1/hush@p:1",
            "http://u:1?hush@p:1",
            "http://wpad/hush.pac",
            "ftp://hush",
            "hush://p",
            "http://p:0",
            "http:/p/hush",
            "[::1",
            "http://\u{fffd}hush",
            "http://[fe80::1%25hush]:1",
            "u:x://hush@p",
        ];
        for value in nonsense {
            let fault = of(&[("HTTPS_PROXY", value)], API).expect_err(value);
            assert_eq!(fault.variable, "HTTPS_PROXY");
            assert!(
                fault.problem.contains("expected the URL") && !fault.problem.contains("hush"),
                "{value}: {fault:?}"
            );
        }
    }

    #[test]
    fn users_and_passwords_are_taken_and_not_shown() {
        for value in ["http://u:hush@p:3128", "u:hush@p:3128", "https://u:h%40ush@p:3128/", "http://u:hu@sh@p:3128"] {
            let environment = [("HTTPS_PROXY".to_owned(), value.to_owned())];
            let proxy = Proxies::read(&environment).of(&API.parse().unwrap()).unwrap().unwrap();
            assert!(proxy.url.password().is_some() && proxy.to_reqwest().is_ok(), "{value}");
            let shown = format!("{proxy:?} {} {}", proxy.address(), proxy.wants_a_user());
            assert!(!shown.contains("hush") && !shown.contains("sh@"), "{shown}");
            assert!(proxy.address().ends_with("://p:3128"), "{shown}");
        }
    }
}
