//! The address of the API.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

use super::proxy::{Proxies, Proxy, ProxyFault, host_and_port};

/// The address of the API: scheme and authority only; and the proxy in front of it, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) url: Url,
    /// The Host header exactly as sent and signed: with the port unless it is the default.
    pub(super) host: String,
    pub(super) proxy: Option<Proxy>,
}

impl Endpoint {
    /// `https://bcc.{region}.baidubce.com` (<https://cloud.baidu.com/doc/BCC/s/0jwvyo603>).
    ///
    /// # Errors
    /// If `region` has other characters than lower-case letters and digits.
    pub fn of_region(region: &str) -> Result<Self, String> {
        if region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err("a region such as bj, bd, gz, su, fwh, hkg".to_owned());
        }
        format!("https://bcc.{region}.baidubce.com").parse()
    }

    /// The same, through the one of `proxies` that is meant for it, or directly.
    ///
    /// # Errors
    /// [`ProxyFault`]: the variable does not name a usable proxy.
    pub fn through(self, proxies: &Proxies) -> Result<Self, ProxyFault> {
        Ok(Self { proxy: proxies.of(&self.url)?, ..self })
    }

    /// The advice for an answer that asks for a proxy's user and password. If it came through a tunnel, it is from no
    /// proxy of ours.
    pub(super) fn wants_a_user(&self) -> String {
        match &self.proxy {
            Some(proxy) if self.url.scheme() == "http" => proxy.wants_a_user(),
            _ => "something on the way to the API answers as a proxy that wants a user and a password (407): check region or \
                  endpoint, or name the proxy and its user in the environment"
                .to_owned(),
        }
    }

    /// Host and port of the first hop: the proxy's, or the API's.
    pub fn first_hop(&self) -> (String, u16) {
        self.proxy.as_ref().map_or_else(|| host_and_port(&self.url), Proxy::host_and_port)
    }

    /// Whether calls go over TLS.
    pub fn has_tls(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// The proxy that calls go through.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// The error says what would be right.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "a URL of scheme and host alone, such as https://bcc.bj.baidubce.com".to_owned();
        let url = Url::parse(text).map_err(|_| expected())?;
        let bare = matches!(url.scheme(), "http" | "https")
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let host = url.host_str().filter(|_| bare).ok_or_else(expected)?;
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Self { url, host, proxy: None })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_that_is_signed_is_the_host_on_the_wire() {
        let host = |url: &str| url.parse::<Endpoint>().unwrap().host;
        assert_eq!(host("https://bcc.bj.baidubce.com"), "bcc.bj.baidubce.com");
        assert_eq!(host("https://bcc.bj.baidubce.com:443/"), "bcc.bj.baidubce.com");
        assert_eq!(host("http://127.0.0.1:8080"), "127.0.0.1:8080");
        assert_eq!(host("http://[::1]:8080"), "[::1]:8080");
        assert_eq!(Endpoint::of_region("gz").unwrap().to_string(), "https://bcc.gz.baidubce.com");
    }

    #[test]
    fn the_first_hop_is_the_proxy_or_else_the_api() {
        let api = |url: &str| url.parse::<Endpoint>().unwrap();
        assert_eq!(api("https://bcc.bj.baidubce.com").first_hop(), ("bcc.bj.baidubce.com".to_owned(), 443));
        assert_eq!(api("http://[::1]:8080").first_hop(), ("::1".to_owned(), 8080));
        let proxies = Proxies::read(&[("HTTPS_PROXY".to_owned(), "u:hush@proxy".to_owned())]);
        let through = api("https://bcc.bj.baidubce.com").through(&proxies).unwrap();
        assert_eq!(through.first_hop(), ("proxy".to_owned(), 80));
    }

    #[test]
    fn an_endpoint_is_scheme_and_host_alone() {
        for text in ["bcc.bj.baidubce.com", "ftp://h", "http://h/v2", "http://h?a", "http://u:p@h", "http://", ""] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        assert!(Endpoint::of_region("bj.evil.example/").is_err());
    }
}
